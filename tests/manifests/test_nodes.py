"""The nodes of PostgreSQL in every document: none assumes a standby that is not there, and each follows the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.spec.loading import check_text
from tests.manifests.specs import spec_of

_SPECS = ("docker/synapse-ops/infrastructure.yaml", "docker/wal-receiver/infrastructure.yaml")  # they say null


@pytest.mark.parametrize("name", ["a managed database", "one node"])
def test_no_document_speaks_of_a_standby_where_there_is_none(name: str) -> None:
    """`failover.standby: null`: no server, script, secret, slot, flow, scrape, alert, panel or volume of one."""
    bundle = render_bundle(spec_of(name))

    for document in bundle.documents:
        text = document.text
        for known in ("failover:", "standby: null", '"standby": null', "synchronous_standby_names"):
            text = text.replace(known, "")
        if document.path.suffix not in {".yaml", ".yml"} or str(document.path) not in _SPECS:
            lines = [line for line in text.splitlines() if re.search("standby|replication_lag", line, re.IGNORECASE)]
            assert lines == [], document.path
    hba = bundle.by_path["postgres/primary/pg_hba.conf"].text
    assert ("synapse_replication" in hba) is (name == "one node")  # for the WAL receiver


def test_a_primary_that_is_alone_is_still_watched() -> None:
    """By its own probe: the comparison of both nodes is left out."""
    bundle = render_bundle(spec_of("a managed database"))

    groups = yaml.safe_load(bundle.by_path["prometheus/rules/alerts.yml"].text)["groups"]
    rules: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in groups for rule in group["rules"]}

    assert 'probe="server/db-primary"' in rules["primary_down"]["expr"]
    assert rules["primary_down"]["labels"]["action"] == "notify"
    assert rules.keys().isdisjoint({"TwoPrimaries", "StandbyMissing", "StandbyLag"})


def test_no_exporter_is_expected_beside_a_managed_server() -> None:
    """Nobody can install one there: TargetDown would fire for ever. One that is named is scraped."""
    managed = "database: {host: db.example.org}\nfailover: {standby: null}\n"

    assert not [target for targets in scraped(managed).values() for target in targets if "db.example.org" in target]
    named = scraped(f"{managed}prometheus: {{targets: {{db: ['db.example.org:9187']}}}}")
    assert named["db"] == ["db.example.org:9187"]
    ours = scraped("failover: {standby: null}")
    assert (ours["db"], "localhost:9100" in ours["node"]) == (["localhost:9187"], True)
    two = scraped("database: {host: 10.0.0.7, nodes: {db-primary: '10.0.0.7:5432', db-standby: '10.0.0.8:5432'}}")
    assert two["db"] == ["10.0.0.7:9187", "10.0.0.8:9187"]


def scraped(text: str) -> dict[str, list[str]]:
    """Return the targets of each job on hosts."""
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    jobs = yaml.safe_load(render_bundle(loaded.spec).by_path["prometheus/prometheus.yml"].text)["scrape_configs"]
    return {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}


@pytest.mark.parametrize(
    ("name", "followed"),
    [
        ("two database hosts", {"primary": "host=10.0.0.8 port=5432", "standby": "host=10.0.0.7 port=5433"}),
        ("named nodes", {"primary": "host=2001:db8::8 port=5432", "standby": "host=10.0.0.7 port=5433"}),
        ("stores elsewhere", {"primary": "host=db-standby port=5432", "standby": "host=db.example.org port=5432"}),
    ],
)
def test_each_node_follows_the_other(name: str, followed: dict[str, str]) -> None:
    """Also where `database.host` is one of them: a primary that follows itself is never a standby again."""
    bundle = render_bundle(spec_of(name))

    told = {role: bundle.by_path[f"postgres/{role}/postgresql.conf"].text for role in followed}

    assert {role: text.split("primary_conninfo = '")[1].split(" user=")[0] for role, text in told.items()} == followed


@pytest.mark.parametrize("manager", ["synapse", "external"])
def test_who_follows_the_primary_has_the_means(manager: str) -> None:
    """The prober looks who takes writes, whatever `watch.servers` lists; else no superuser's password lies there."""
    text = f"watch: {{servers: [redis]}}\nfailover: {{manager: {manager}}}"
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults

    mounted = yaml.safe_load(render_bundle(loaded.spec).by_path["docker/compose.yaml"].text)["services"]["synapse-ops"]

    assert ("database-admin-url" in mounted["secrets"]) is (manager == "external")


def test_clients_of_two_database_hosts_name_both() -> None:
    """In every place, and the policies of the cluster let them; `database.host` that is no node stays alone."""
    bundle = render_bundle(spec_of("two database hosts"))

    in_cluster = bundle.by_path["kubernetes/41-api.yaml"].text
    for text in (
        bundle.by_path["postgres/database-url.txt"].text,
        bundle.by_path["docker/compose.yaml"].text,
        in_cluster,
    ):
        assert "@10.0.0.7:5433,10.0.0.8:5432/synapse?target_session_attrs=read-write" in text
    policies = list(yaml.safe_load_all(bundle.by_path["kubernetes/20-network.yaml"].text))
    for part in ("api", "worker", "synapse-ops", "wal-receiver"):
        [found] = [one for one in policies if one["metadata"]["name"] == f"synapse-{part}"]
        ways = {
            (peer["ipBlock"]["cidr"], entry["ports"][0]["port"])
            for entry in found["spec"]["egress"]
            for peer in entry["to"]
            if "ipBlock" in peer
        }
        assert {("10.0.0.7/32", 5433), ("10.0.0.8/32", 5432)} <= ways, part
    alone = render_bundle(spec_of("stores elsewhere")).by_path["postgres/database-url.txt"].text
    assert "@db.example.org:5432/" in alone


def test_no_node_in_compose_waits_for_another_to_be_healthy() -> None:
    """The start gate of the primary asks the other node, which may be the primary by now: neither would ever start."""
    services = yaml.safe_load(render_bundle(spec_of("default")).by_path["docker/compose.yaml"].text)["services"]

    assert [services[node].get("depends_on") for node in ("db-primary", "db-standby")] == [None, None]
