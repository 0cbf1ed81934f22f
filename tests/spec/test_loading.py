"""Loading: every fault of a file is told at once, with its place, what was found and what is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from synapse_ops.errors import ConfigError
from synapse_ops.spec import load_spec
from synapse_ops.spec.faults import Fault, format_path
from synapse_ops.spec.loaded import LoadedSpec
from synapse_ops.spec.loading import check_text

FILE = Path("infrastructure.yaml")
REFERENCE_BLOCKS = Path(__file__).with_name("reference_blocks.yaml")
BLOCKS = REFERENCE_BLOCKS.read_text(encoding="utf-8").split("\n---\n")


def faults_of(text: str) -> list[Fault]:
    loaded, faults = check_text(text, FILE)
    assert (loaded is None) == bool(faults)
    return faults


def only_fault_of(text: str) -> str:
    faults = faults_of(text)
    assert len(faults) == 1, [fault.render(FILE) for fault in faults]
    return faults[0].render(FILE)


def loaded_from(text: str) -> LoadedSpec:
    loaded, faults = check_text(text, FILE)
    assert loaded is not None, [fault.render(FILE) for fault in faults]
    return loaded


def test_a_spec_with_only_a_name_has_every_default() -> None:
    """Every block and field is optional."""
    assert loaded_from("name: synapse").digest == loaded_from("time_zone: UTC").digest


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_of_the_reference_is_a_valid_spec(block: str) -> None:
    """A block of the reference document works pasted alone, and means the defaults."""
    assert loaded_from(block).digest == loaded_from("name: synapse").digest


def test_the_blocks_of_the_reference_are_valid_together() -> None:
    """As one mapping and as one file of several documents."""
    as_one = loaded_from("\n".join(BLOCKS))
    as_documents = loaded_from(REFERENCE_BLOCKS.read_text(encoding="utf-8"))

    assert as_one.digest == as_documents.digest == loaded_from("name: synapse").digest


def test_a_flat_backup_block_is_the_vector_stores() -> None:
    """The reference's flat block keeps its lines, and leaves the database's backup at its defaults."""
    loaded = loaded_from(
        'backup:\n  schedule: "5 5 * * *"\n  retention: 9\n  method: streamed\n  database: {retention: 60d}\n'
    )

    assert loaded.spec.backup.vectors.schedule == "5 5 * * *"
    assert loaded.spec.backup.vectors.retention.days == 9
    assert loaded.spec.backup.vectors.method == "streamed"
    assert loaded.spec.backup.database.schedule == "0 0 * * *"
    assert loaded.spec.backup.database.retention.days == 60
    assert loaded.origins["backup.vectors.retention"] == "infrastructure.yaml:3"


def test_a_backup_value_that_stands_flat_and_nested_is_refused() -> None:
    """Neither of two values wins in silence."""
    message = only_fault_of("backup:\n  retention: 7\n  vectors:\n    retention: 8\n")

    assert message.startswith("infrastructure.yaml:2:3: backup.retention: ")
    assert "backup.vectors.retention (line 4)" in message


def test_all_faults_are_reported_together_in_the_order_of_their_lines() -> None:
    """A fault of form, an unknown key, a wrong type, a wrong unit and a bad combination come in one report."""
    faults = faults_of(
        "name: Synapse!\n"
        "srever: {port: 1}\n"
        "server: {prot: 1, port: 70000, timeout: 5Gi}\n"
        "server: {port: 1}\n"
        "failover: {primary: a, standby: a}\n"
        "health:\n"
        "  - {name: api, url: /health, interval: 5s, timeout: 10s}\n"
        "  - {name: api, url: nowhere}\n"
        "  - {name: api, url: /x}\n"
    )

    assert [(fault.place.line if fault.place else 0, format_path(fault.path)) for fault in faults] == [
        (1, "name"),
        (2, "srever"),
        (3, "server.prot"),
        (3, "server.port"),
        (3, "server.timeout"),
        (4, "server"),
        (5, "failover.standby"),
        (7, "health[0].timeout"),
        (8, "health[1].url"),
        (9, "health[2].name"),
    ]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("server: {prot: 1}", "port"),
        ("databse: {}", "database"),
        ("health: [{nmae: a, name: a, url: /}]", "name"),
        ("backup: {retnetion: 7}", "retention"),
        ("kubernetes: {max_replicas: 5}", "autoscaling.max_replicas"),
        ("qdrant: {distance: cosine}", "Cosine"),
        ("tls: {min_version: TLSv1.3.0}", "TLSv1.3"),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_with_the_nearest_word(text: str, suggestion: str) -> None:
    """For an unknown key that stands in one other block only, the answer is its full path."""
    assert f'did you mean "{suggestion}"?' in only_fault_of(text)


@pytest.mark.parametrize(
    ("text", "field", "found", "allowed"),
    [
        ("server: {port: 0}", "server.port", "0", "a whole number from 1 to 65535"),
        ("server: {port: true}", "server.port", "true", "a whole number from 1 to 65535"),
        ('server: {port: "80"}', "server.port", '"80"', "a whole number from 1 to 65535"),
        ("server: {port: 80.0}", "server.port", "80.0", "a whole number from 1 to 65535"),
        ("server: 5", "server", "5", "a mapping with the keys host, port"),
        ("server: [1]", "server", "a list", "a mapping with the keys host, port"),
        ("server: null", "server", "null", "a mapping with the keys host, port"),
        ("server: {timeout: 5Gi}", "server.timeout", '"5Gi"', "a duration such as"),
        ("server: {timeout: 0}", "server.timeout", "0", "more than 0"),
        ("resources: {limits: {memory: 4h}}", "resources.limits.memory", '"4h"', "a size such as"),
        ("resources: {limits: {cpu: 0}}", "resources.limits.cpu", "0", "a number of CPU cores"),
        ("updates: {rollback: yes}", "updates.rollback", '"yes"', "true or false"),
        ("updates: {schedule: '0 0 30 2 *'}", "updates.schedule", '"0 0 30 2 *"', "this one never fires"),
        ("backup: {database: {retention: 0}}", "backup.database.retention", "0", "more than 0"),
        ("backup: {database: {destination: /var/x}}", "backup.database.destination", '"/var/x"', "s3://BUCKET/"),
        ("backup: {database: {destination: 's3://b'}}", "backup.database.destination", '"s3://b"', "s3://BUCKET/"),
        ("backup: {destination: 's3://b/../c'}", "backup.vectors.destination", '"s3://b/../c"', "no empty"),
        ("retention: {max_expiry_ratio: 2}", "retention.max_expiry_ratio", "2", "above 0, at most 1"),
        ("time_zone: Mars/Olympus", "time_zone", '"Mars/Olympus"', "IANA"),
        ("encryption: {recipients: [age1x]}", "encryption.recipients[0]", '"age1x"', "an age public key"),
        ("alerts: [{name: a, condition: high}]", "alerts[0].condition", '"high"', "a condition such as cpu > 80%"),
        ("alerts: [{name: a, condition: gpu > 80%}]", "alerts[0].condition", "gpu > 80%", "one of the measures up"),
        ("alerts: [{name: a, condition: cpu > 80}]", "alerts[0].condition", "cpu > 80", "with its unit: one of %"),
        ("alerts: [{name: a, condition: cpu == 80%}]", "alerts[0].condition", "cpu == 80%", "never exactly"),
        ("alerts: [{name: a, condition: cpu > 100%}]", "alerts[0].condition", "cpu > 100%", "never does"),
        ("alerts: [{name: a, condition: up >= 0}]", "alerts[0].condition", "up >= 0", "always does"),
        ("alerts: [{condition: up == 0}]", "alerts[0].name", "nothing", "a name"),
        ("firewall: {inbound: [{port: 1, source: 10.1.0.0/8}]}", "firewall.inbound[0].source", '"10.1.0.0/8"', "host"),
        ("logging: {paths: []}", "logging.paths", "an empty list", "at least one"),
        ("alerting: {actions: {a: reboot}}", "alerting.actions.a", '"reboot"', "one of notify, failover, none"),
        ("database: {host: 'db:5432'}", "database.host", '"db:5432"', "without port"),
        ("database: {host: 'http://db'}", "database.host", '"http://db"', "without port or scheme"),
        ("database: {name: " + "ü" * 32 + "}", "database.name", '"' + "ü" * 32 + '"', "63 bytes"),
        ("tls: {cert_file: certs/x.pem}", "tls.cert_file", '"certs/x.pem"', "an absolute path"),
        ("object_store: {endpoint: s3.example.org}", "object_store.endpoint", '"s3.example.org"', "or null"),
        ("failover: {synchronous: true}", "failover.synchronous", "true", "one of off, standby"),
    ],
)  # fmt: skip
def test_a_fault_says_where_what_and_what_instead(text: str, field: str, found: str, allowed: str) -> None:
    """Field path, value as found, and what is allowed, on one line."""
    message = only_fault_of(text)

    assert message.startswith("infrastructure.yaml:1:")
    assert f": {field}: found {found}; allowed: " in message
    assert allowed in message.partition("; allowed: ")[2]
    assert "\n" not in message


def test_a_mistyped_recipient_is_refused_by_its_checksum() -> None:
    """One wrong character of an age key would make backups that nobody can open."""
    key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

    assert loaded_from(f"encryption: {{recipients: [{key}]}}").spec.encryption.recipients == (key,)
    assert "checksum" in only_fault_of(f"encryption: {{recipients: [{key[:-1]}q]}}")


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    """The later of two equal keys does not win in silence."""
    message = only_fault_of("redis:\n  port: 1\n  host: a\n  port: 2\n")

    assert message.startswith("infrastructure.yaml:4:3: redis.port: ")
    assert "first in line 2" in message


def test_a_block_that_stands_in_two_documents_is_refused() -> None:
    """Documents of one file are merged by block, never within a block."""
    assert "each block once" in only_fault_of("redis: {port: 1}\n---\nredis: {port: 2}\n")


def test_a_key_without_a_value_is_refused() -> None:
    """A block whose lines are commented out does not quietly become null, which switches autoscaling off."""
    message = only_fault_of("autoscaling:\n  # min_replicas: 2\nname: a\n")

    assert message.startswith("infrastructure.yaml:1:1: autoscaling: found no value")


def test_anchors_and_merge_keys_are_followed() -> None:
    """Values written once and used twice are ordinary YAML; keys written beside a merge win."""
    text = "worker: &times\n  timeout: 30\nserver:\n  <<: *times\n  port: 9000\nredis: {<<: [*times], timeout: 3}\n"
    spec = loaded_from(text).spec

    assert (spec.server.timeout.total_seconds(), spec.server.port, spec.redis.timeout.total_seconds()) == (30, 9000, 3)


def test_origins_name_the_line_of_what_was_written() -> None:
    """What is not among the origins has its default."""
    loaded = loaded_from("name: a\n\nhealth:\n  - name: x\n    url: /x\n")

    assert loaded.origins["name"] == "infrastructure.yaml:1"
    assert loaded.origins["health[0].url"] == "infrastructure.yaml:5"
    assert "health[0].timeout" not in loaded.origins


def test_the_databases_to_back_up_follow_the_applications_database() -> None:
    """Whoever renames the database does not thereby leave it without a backup."""
    assert loaded_from("database: {name: shop}").spec.database.databases == ("shop",)
    assert loaded_from("database: {name: shop, databases: [a, b]}").spec.database.databases == ("a", "b")


def test_the_applications_database_is_the_first_that_is_listed() -> None:
    """Who lists databases and names none has no database called synapse."""
    assert loaded_from("database: {databases: [shop, b]}").spec.database.name == "shop"
    assert loaded_from("database: {name: a, databases: [b]}").spec.database.name == "a"


def test_nodes_that_the_rendered_firewall_parts_are_noted() -> None:
    """Each machine gets the same firewall: a standby on another one could not follow."""
    nodes = "database: {nodes: {db-primary: '10.0.0.7:5432', db-standby: '10.0.0.8:5432'}}\n"

    assert any("no port 5432 to 10.0.0.7, 10.0.0.8" in note for note in loaded_from(nodes).notes)
    beside = "database: {host: 10.0.0.7, nodes: {db-standby: '10.0.0.8:5432'}}\n"
    assert any("no port 5432 to 10.0.0.7, 10.0.0.8" in note for note in loaded_from(beside).notes)
    opened = f"{nodes}firewall: {{inbound: [{{port: 5432, source: 10.0.0.0/28}}]}}\n"
    assert not any("5432" in note for note in loaded_from(opened).notes)


def test_a_standby_of_a_database_elsewhere_that_nobody_placed_is_noted() -> None:
    """A managed server has none, and the default says that there is one."""

    def said(text: str) -> bool:
        return any("`failover.standby: null`" in note for note in loaded_from(text).notes)

    assert said("database: {host: db.example.org}")
    assert not said("database: {host: db.example.org}\nfailover: {standby: null}")
    assert not said("database: {host: db.example.org, nodes: {db-standby: 'db-2.example.org:5432'}}")
    assert not said("name: synapse")


def test_a_failover_that_is_not_ours_makes_its_settings_idle() -> None:
    """What still has an effect, an alert's limit or delay, is not called idle."""
    alone = loaded_from("failover: {standby: null}").ignored
    external = loaded_from("failover: {manager: external}").ignored

    assert {"failover.automatic", "failover.manager", "failover.max_lag_bytes"} <= alone.keys()
    assert {"failover.automatic", "failover.timeout"} <= external.keys()
    assert external.keys().isdisjoint({"failover.max_lag_bytes", "failover.primary_start_timeout"})
    for ignored in (alone, external):
        assert "alerting.actions.primary_down" in ignored
        assert {"drills.failover", "drills.switchover"} <= ignored.keys()
    assert "drills.recovery" in loaded_from('backup: {database: {wal_archiving: "off"}}').ignored


def test_a_tls_version_that_the_cluster_s_entry_cannot_carry_is_noted() -> None:
    assert any("an Ingress has no field" in note for note in loaded_from("tls: {min_version: TLSv1.3}").notes)
    assert not any("Ingress" in note for note in loaded_from("name: synapse").notes)


def test_a_password_that_travels_in_the_clear_is_noted() -> None:
    """On this machine, and over a socket, nobody listens."""
    for host, is_noted in (("cache.example.org", True), ("localhost", False), ("/run/redis", False)):
        notes = loaded_from(f"redis: {{host: {host}, password: 'env:P'}}").notes
        assert any("redis.password" in note for note in notes) is is_noted


def test_an_index_that_is_never_deleted_is_noted() -> None:
    assert any('"lines" has no date' in note for note in loaded_from("logging: {index: lines}").notes)
    assert not any("no date" in note for note in loaded_from("name: synapse").notes)


def test_a_cooldown_that_kubernetes_cuts_is_named_with_the_reason() -> None:
    assert "1h at most" in loaded_from("autoscaling: {cooldown_period: 2h}").ignored["autoscaling.cooldown_period"]
    assert "autoscaling.cooldown_period" not in loaded_from("autoscaling: {cooldown_period: 1h}").ignored


def test_a_package_that_is_not_copied_is_noted() -> None:
    """The image would be built, and start nothing."""
    notes = loaded_from("docker: {source: src/shop, application: 'shop.main:app'}").notes

    assert [note for note in notes if note.startswith("docker.")] == [
        'docker.worker_module is in "app", and the image copies "shop": the lock file must bring it'
    ]
    assert not any(note.startswith("docker.") for note in loaded_from("name: synapse").notes)


def test_logs_that_no_container_writes_are_noted() -> None:
    """On hosts they are read; containers share one directory."""
    notes = loaded_from("logging: {paths: [/var/log/synapse/*.log, /srv/a/*.log]}").notes

    assert any(note.startswith("logging.paths /srv/a/*.log: ") for note in notes)
    assert not any(note.startswith("logging.paths") for note in loaded_from("name: synapse").notes)


def test_a_firewall_that_shuts_out_its_owner_or_all_clients_is_noted() -> None:
    """Both may be meant, and are found out late."""
    notes = [note for note in loaded_from("firewall: {inbound: [{port: 8443}]}").notes if note.startswith("firewall.")]

    assert [note.partition(":")[0] for note in notes] == [
        "firewall.inbound opens no port 22", "firewall.inbound opens no port 443"
    ]  # fmt: skip
    assert not any(note.startswith("firewall.") for note in loaded_from("name: synapse").notes)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("redis: {host: /run/redis.sock}", 'redis.host "/run/redis.sock" is a socket'),
        ("database: {host: /run/postgresql}", 'database.host "/run/postgresql" is a directory'),
        ("prometheus: {targets: {alertmanager: []}}", "prometheus.targets.alertmanager is empty"),
        ("prometheus: {targets: {synapse_ops: []}}", "prometheus.targets.synapse_ops is empty"),
    ],
)
def test_what_rendered_servers_do_not_do_by_themselves_is_noted(text: str, beginning: str) -> None:
    """Nobody would look for it before it is missed."""
    assert any(note.startswith(beginning) for note in loaded_from(text).notes)
    assert not any(note.startswith(beginning) for note in loaded_from("name: synapse").notes)


def test_a_database_that_is_not_backed_up_is_noted() -> None:
    """It is allowed, and told."""
    loaded = loaded_from("database: {name: shop, databases: [other]}")

    assert any('"shop": it is not backed up' in note for note in loaded.notes)


def test_a_value_without_effect_is_named_with_the_reason() -> None:
    """Beside autoscaling a number of replicas is ignored; without it, it counts."""
    assert "autoscaling" in loaded_from("kubernetes: {replicas: 5}").ignored["kubernetes.replicas"]
    assert loaded_from("kubernetes: {replicas: 5}\nautoscaling: null").ignored == {}


def test_a_loaded_spec_is_plain_and_survives_pickling(tmp_path: Path) -> None:
    """Dagster hands it to other processes."""
    file = tmp_path / "infrastructure.yaml"
    file.write_text("name: a\n")

    loaded = load_spec(file)

    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_load_spec_raises_one_error_with_every_fault(tmp_path: Path) -> None:
    """The exit code is 2, and each fault is a line of the detail."""
    file = tmp_path / "infrastructure.yaml"
    file.write_text("nmae: a\nserver: {port: 0}\n")

    with pytest.raises(ConfigError) as caught:
        load_spec(file)

    assert caught.value.exit_code == 2
    assert "2 faults" in caught.value.message
    assert [line.split(" ")[0] for line in caught.value.detail.splitlines()] == [f"{file}:1:1:", f"{file}:2:10:"]
