"""What a valid spec may still mean: a secret in a document is refused, what an operator may want so is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from synapse_ops.errors import Refused
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.consistency import Finding, check_consistency
from synapse_ops.manifests.document import Document
from synapse_ops.manifests.targets import TARGETS, Target
from synapse_ops.operations.release.render import render
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from tests.manifests.specs import spec_of


def findings(text: str) -> tuple[Finding, ...]:
    """Return what the rules find in the documents of a valid spec."""
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    return check_consistency(render_bundle(loaded.spec), loaded.spec)


def targets_with_a_secret() -> tuple[Target, ...]:
    """Return the targets, one of which writes a password into redis.conf."""
    [redis] = [target for target in TARGETS if target.name == "redis_config"]

    def written(spec: Spec) -> tuple[Document, ...]:
        return tuple(replace(one, data=b"# password=hunter2\n" + one.data) for one in redis.render(spec))

    return tuple(replace(target, render=written) if target is redis else target for target in TARGETS)


def test_a_document_with_a_secret_is_refused_and_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret itself is not repeated: messages are pasted into tickets."""
    monkeypatch.setattr("synapse_ops.operations.release.render.TARGETS", targets_with_a_secret())

    with pytest.raises(Refused) as refused:
        render(spec_of("default"))

    assert refused.value.detail == "redis/redis.conf: line 1 looks like a secret (no_document_holds_a_secret)"


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("database: {max_connections: 40, pool_size: 2}\nserver: {workers: 2}\nautoscaling: {max_replicas: 8}", []),
        ("database: {max_connections: 39, pool_size: 2}\nserver: {workers: 2}\nautoscaling: {max_replicas: 8}", [40]),
        ("database: {max_connections: 10, pool_size: 3}\nautoscaling: null\nkubernetes: {replicas: 3}", [48]),
    ],
)
def test_pools_that_may_want_more_connections_than_there_are_are_noted(text: str, noted: list[int]) -> None:
    """Each process of API and worker has a pool of its own; at full load of all some wait."""
    said = [row for row in findings(text) if row.rule == "connections_fit"]

    assert [f"may want {count} connections" in row.message for row, count in zip(said, noted, strict=True)] == (
        [True] * len(noted)
    )


@pytest.mark.parametrize(
    ("text", "is_noted"),
    [
        ("firewall: {inbound: [{port: 80, source: 0.0.0.0/0}]}", False),
        ("firewall: {inbound: [{port: 443, source: 0.0.0.0/0}]}", True),
        ("firewall: {inbound: [{port: 443, source: 0.0.0.0/0}]}\nkubernetes: {service: {type: ClusterIP}}", False),
    ],
)
def test_a_service_of_which_the_firewall_opens_no_port_is_noted(text: str, is_noted: bool) -> None:
    service = "" if "kubernetes" in text else "\nkubernetes: {service: {type: LoadBalancer}}"
    said = [row for row in findings(text + service) if row.rule == "the_firewall_opens_the_service"]

    assert bool(said) is is_noted


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("name: synapse", []),
        ("object_store: {endpoint: 'http://127.0.0.1:9000'}", ["object_store.endpoint is 127.0.0.1:9000"]),
        ("health: [{name: a, url: 'https://localhost/x'}, {name: b, url: /y}]", ["health.a is localhost:443"]),
        ("database: {host: db, nodes: {db-standby: '[::1]:5433'}}", ["database.nodes.db-standby is [::1]:5433"]),
        ("qdrant: {nodes: ['http://10.0.0.7:6333', 'http://localhost:6333']}", ["qdrant.nodes is localhost:6333"]),
    ],
)
def test_addresses_of_this_machine_that_a_container_would_ask_are_noted(text: str, noted: list[str]) -> None:
    """In compose and in the cluster alike; stores of the stack have names of their own there."""
    said = [row for row in findings(text) if row.rule == "the_prober_asks_other_hosts"]

    assert [row.message.partition(":  ")[0].rpartition(": in")[0] for row in said] == noted * 2
    assert [row.path.partition("/")[0] for row in said] == ["docker", "kubernetes"][: len(said)]


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("name: synapse", []),
        ("server: {port: 443}", ["server.port 443"]),
        ("qdrant: {port: 9100}", ["qdrant.port 9100"]),
        ("database: {port: 9108}\nredis: {port: 9187}", ["database.port 9108", "redis.port 9187"]),
        ("database: {host: db}\nredis: {port: 9187}", []),
        ("logging: {beats_port: 9090}\nwatch: {port: 9115}", ["logging.beats_port 9090", "watch.port 9115"]),
        ("redis: {port: 9109}", ["redis.port 9109"]),
        ("redis: {port: 9109}\nwatch: {port: 9116}", []),
        ("watch: {port: 9110}", ["watch.port 9110"]),
        ("watch: {port: 9110}\nbackup: {database: {wal_archiving: 'off'}}", []),
    ],
)
def test_two_programs_of_a_host_on_one_port_are_noted(text: str, noted: list[str]) -> None:
    """In containers each has its own: it is no fault."""
    said = [row.message for row in findings(text) if row.rule == "ports_of_a_host_differ"]

    assert [message.partition(" is ")[0] for message in said] == noted
