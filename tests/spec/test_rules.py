"""Combinations that cannot work are refused, at the line to mend, and only what was really written is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_ops.spec.faults import format_path
from synapse_ops.spec.loading import check_text

FILE = Path("f")
BASES = "{database: {base: {full_every: 7d}}}"
REFUSED = [
    ("failover: {primary: a, standby: a}", "failover.standby"),
    ("failover: {standby: db-primary}", "failover.standby"),
    ("failover: {stonith_command: [fence, node]}", "failover.stonith_command[0]"),
    ("database: {nodes: {db-primary: 'a:1', db-standby: 'b:1', db-third: 'c:1'}}", "database.nodes.db-third"),
    (
        "failover: {standby: null}\ndatabase: {nodes: {db-primary: 'a:1', db-standby: 'b:1'}}",
        "database.nodes.db-standby",
    ),
    ("database: {nodes: {db-primary: 'a:1', db-standby: 'a:1'}}", "database.nodes.db-standby"),
    ("failover: {standby: null, synchronous: standby}", "failover.synchronous"),
    ("failover: {manager: external, synchronous: standby}", "failover.synchronous"),
    (
        "failover: {manager: external}\nbackup: {database: {wal: {synchronous: true}}}",
        "backup.database.wal.synchronous",
    ),
    ("failover: {standby: null}\nalerts: [{name: a, condition: replication_lag > 5s}]", "alerts[0].condition"),
    (
        f"backup: {BASES}\ndocker: {{images: {{postgres: 'registry:5000/postgres:16.14@sha256:{'1' * 64}'}}}}",
        "backup.database.base.full_every",
    ),
    ("autoscaling: {min_replicas: 5, max_replicas: 4}", "autoscaling.min_replicas"),
    ("autoscaling: {max_replicas: 1}", "autoscaling.min_replicas"),
    ("updates: {max_unavailable: 3}", "updates.max_unavailable"),
    ("autoscaling: null\nupdates: {max_unavailable: 4}", "updates.max_unavailable"),
    ("database: {pool_size: 21}", "database.pool_size"),
    ("resources: {requests: {cpu: 3}}", "resources.requests.cpu"),
    ("resources: {requests: {memory: 5Gi}}", "resources.requests.memory"),
    ("health: [{name: a, url: /, interval: 5s, timeout: 6s}]", "health[0].timeout"),
    ("updates: {schedule: '* * * * *'}", "updates.timeout"),
    ("proof: {schedule: '*/30 * * * *'}", "proof.timeout"),
    ("failover: {timeout: 61m}", "failover.timeout"),
    ("objectives: {rto: 10s}", "failover.timeout"),
    ("failover: {primary_start_timeout: 31s}", "failover.primary_start_timeout"),
    ("retention: {left_over_grace: 59s}", "retention.left_over_grace"),
    ("redis: {port: 5432}", "redis.port"),
    ("server: {port: 6333}", "qdrant.port"),
    ("redis: {host: 127.0.0.1, port: 8000}", "redis.port"),
    ("database: {host: db, port: 1}\nqdrant: {host: db, port: 1}", "qdrant.port"),
    ("logging: {beats_port: 8000}", "logging.beats_port"),
    ("firewall: {inbound: [{port: 22}, {port: 22}]}", "firewall.inbound[1]"),
    ("firewall: {inbound: [{port: 22}, {port: 22, source: 10.0.0.0/8}]}", "firewall.inbound[1]"),
    ("firewall: {inbound: [{port: 22, source: 10.1.0.0/16}, {port: 22, source: 10.0.0.0/8}]}", "firewall.inbound[1]"),
    ("health: [{name: a, url: /}, {name: a, url: /x}]", "health[1].name"),
    ("alerts: [{name: a, condition: up == 0}, {name: a, condition: up == 1}]", "alerts[1].name"),
    ("database: {databases: [synapse, synapse]}", "database.databases[1]"),
    ("grafana: {dashboards: [system, system]}", "grafana.dashboards[1]"),
    ("logging: {elasticsearch: ['a:1', 'a:1']}", "logging.elasticsearch[1]"),
    ("qdrant: {nodes: ['http://a:6333', 'http://a:6333/']}", "qdrant.nodes[1]"),
    ("qdrant: {tls: true, api_key: 'env:A', nodes: ['https://a:1', 'http://b:1']}", "qdrant.nodes[1]"),
    ("cleanup: {cache_patterns: ['a:*', 'a:*']}", "cleanup.cache_patterns[1]"),
    ("vectors: {sources: [{table: a, collection: b}, {table: a, collection: b}]}", "vectors.sources[1]"),
    ("backup: {destination: 's3://backups/database/'}", "backup.vectors.destination"),
    ("backup: {database: {destination: 's3://backups'}}", "backup.vectors.destination"),
    ("cleanup: {log_roots: [/]}", "cleanup.log_roots[0]"),
    ("cleanup: {temp_roots: [/var/]}", "cleanup.temp_roots[0]"),
    ("cleanup: {log_roots: [/var/log/../../etc]}", "cleanup.log_roots[0]"),
    ("kubernetes: {stores: {database: elsewhere}}", "kubernetes.stores.database"),
    ("redis: {host: /run/redis}\nkubernetes: {stores: {redis: elsewhere}}", "kubernetes.stores.redis"),
    ("qdrant: {host: 'E:4:cAA:1Fe'}", "qdrant.host"),
    ("qdrant: {host: /run/qdrant}", "qdrant.host"),
    ("qdrant: {nodes: ['http://[1::2::3]:6333']}", "qdrant.nodes[0]"),
    ("health_base_url: http://api:70000", "health_base_url"),
    ("alerting: {runbook_url: 'https://a/b#c'}", "alerting.runbook_url"),
    ("prometheus: {targets: {api: ['a:0']}}", "prometheus.targets.api[0]"),
    ("redis: {host: worker}", "redis.host"),
    ("failover: {primary: api}", "failover.primary"),
    ("failover: {primary: pg-a, standby: db-primary}", "failover.standby"),
    ("database: {host: db}\nfailover: {standby: redis}", "failover.standby"),
    ("kubernetes: {entry: {hosts: [a.example.org, a.example.org]}}", "kubernetes.entry.hosts[1]"),
    ("server: {timeout: 25d}", "server.timeout"),
    ("server: {keepalive: 25d}", "server.keepalive"),
    ("worker: {timeout: 36600d}", "worker.timeout"),
    ("updates: {timeout: 25d, schedule: '0 0 1 1 *'}", "updates.timeout"),
    ("health: [{name: a, url: /}, {name: b, url: /x, interval: 36600d}]", "health[1].interval"),
    ("prometheus: {scrape_interval: 5m}", "prometheus.scrape_interval"),
    ("prometheus: {evaluation_interval: 121s}", "prometheus.evaluation_interval"),
    ("logging: {paths: []}", "logging.paths"),
    ("logging: {paths: [/a/*.log, /a/*.log]}", "logging.paths[1]"),
    ("logging: {paths: ['/var/log/{a,b}.log']}", "logging.paths[0]"),
    ("logging: {paths: ['/var/log/a\"b.log']}", "logging.paths[0]"),
    ("failover: {stonith_command: [/sbin/fence, -p, hunter2]}", "failover.stonith_command[2]"),
    ("failover: {stonith_command: [/sbin/fence, --password=hunter2]}", "failover.stonith_command[1]"),
    ("firewall: {inbound: [{port: 22, source: 'fe80::1%eth0'}]}", "firewall.inbound[0].source"),
    ("database: {user: app, replication_user: app}", "database.replication_user"),
    ("database: {user: pg_app}", "database.user"),
    ("database: {user: synapse_monitoring}", "database.user"),
    ("database: {replication_user: postgres}", "database.replication_user"),
    ("database: {host: db, name: a, user: postgres}\nkubernetes: {stores: {database: cluster}}", "database.user"),
    ("database: {name: a, databases: [a, template1]}", "database.databases[1]"),
    ("database: {port: 9187}", "database.port"),
    ("redis: {port: 9121}", "redis.port"),
    ("qdrant: {port: 6334}", "qdrant.port"),
    ("server: {port: 9108}", "server.port"),
    ("server: {port: 9109}", "server.port"),
    ("watch: {port: 8000}", "server.port"),
    ("watch: {port: 9108}", "watch.port"),
    ("cleanup: {temp_roots: [/var/lib]}", "cleanup.temp_roots[0]"),
    ("cleanup: {temp_roots: [/etc/ssl/synapse]}", "cleanup.temp_roots[0]"),
    ("cleanup: {temp_roots: [//tmp/./]}", "cleanup.temp_roots[0]"),
    ("cleanup: {log_roots: [/var/log]}", "cleanup.log_roots[0]"),
    ("cleanup: {log_roots: [/home/alice]}", "cleanup.log_roots[0]"),
    ("kubernetes: {namespace: kube-system}", "kubernetes.namespace"),
    ("name: default", "name"),
    ("kubernetes: {namespace: monitoring}", "kubernetes.monitoring_namespace"),
    ("name: ingress-controller", "kubernetes.entry.controller_namespace"),
    ("logging: {elasticsearch: ['https://a:1', 'b:1']}", "logging.elasticsearch[1]"),
    ("logging: {elasticsearch: ['a:1'], api_key: 'env:K'}", "logging.elasticsearch[0]"),
    ("qdrant: {host: db-primary}", "qdrant.host"),
    ("database: {host: /run/postgresql}\nredis: {host: db-standby}", "redis.host"),
    ("qdrant: {nodes: ['http://q:6333', 'http://api:6333']}", "qdrant.nodes[1]"),
    ("object_store: {endpoint: 'http://elasticsearch:9000'}", "object_store.endpoint"),
    ("tls: {cert_file: '/etc/x\\'}", "tls.cert_file"),
    ("database: {max_connections: 262143}", "database.max_connections"),
    ("cleanup: {log_roots: [/data/a], temp_roots: [/data/a/b]}", "cleanup.temp_roots[0]"),
]
ALLOWED = [
    "failover: {primary: pg-a, standby: db-standby}",
    "failover: {standby: null}\nredis: {host: db-standby}",
    "database: {host: db}\nfailover: {primary: db-standby, standby: db-primary}",
    "server: {timeout: 24d, keepalive: 24d}\nworker: {timeout: 24d}",
    "prometheus: {scrape_interval: 2m, evaluation_interval: 2m}",
    "database: {host: a, port: 1}\nqdrant: {host: b, port: 1}",
    "database: {host: /var/run/postgresql}\nredis: {host: /var/run/postgresql, port: 5432}",
    "firewall: {inbound: [{port: 22, source: 10.0.0.0/8}, {port: 22, source: 192.168.0.0/16}]}",
    "firewall: {inbound: [{port: 22, source: 0.0.0.0/0}, {port: 22, source: '::/0'}]}",
    "firewall: {inbound: []}",
    "health: [{name: a, url: /, interval: 5s, timeout: 5s}]",
    "health: []\nalerts: []",
    "autoscaling: {min_replicas: 4, max_replicas: 4}",
    "backup: {database: {destination: 's3://abc/data'}, vectors: {destination: 's3://abc/data2'}}",
    "vectors: {sources: [{table: a, collection: b}, {table: a, collection: c}]}",
    "qdrant: {tls: true, nodes: ['https://a:1', 'http://b:1']}",
    "qdrant: {api_key: 'env:A', nodes: ['https://a:1', 'http://b:1']}",
    "cleanup: {log_roots: [/var/log/synapse], temp_roots: [/var/log/synapse2]}",
    "database: {host: db, user: postgres, replication_user: postgres}",
    "cleanup: {log_roots: [/var/log/synapse, /srv/synapse/log], temp_roots: [/tmp/synapse, /home/synapse/tmp]}",
    "name: ingress-controller\nkubernetes: {entry: {kind: none}}",
    "logging: {elasticsearch: ['https://a:1', 'https://b:1'], api_key: 'env:K'}",
    "database: {host: db-primary}\nredis: {host: redis}\nqdrant: {host: qdrant}",
    "alerting: {actions: {'null': notify, 'true': none}}",
]


@pytest.mark.parametrize(("text", "field"), REFUSED)
def test_values_that_cannot_work_together_are_refused(text: str, field: str) -> None:
    """One fault, at the field to mend, in a line that was written."""
    loaded, faults = check_text(text, FILE)

    assert loaded is None
    assert [format_path(fault.path) for fault in faults] == [field]
    assert faults[0].place is not None
    assert faults[0].place.line <= text.count("\n") + 1


@pytest.mark.parametrize("text", ALLOWED)
def test_values_at_the_edge_of_a_rule_are_allowed(text: str) -> None:
    """Equal bounds, other hosts, other networks, other prefixes and empty lists are no fault."""
    _, faults = check_text(text, FILE)

    assert faults == []


@pytest.mark.parametrize(
    "text",
    [
        "database: {host: db}\nfailover: {primary: db-standby!, standby: db-primary}",
        "autoscaling: {min_replicas: 20, max_replicas: x}",
        "server: {port: 5432x}\nredis: {port: 8000}",
        "health: [{name: a, url: nowhere}, {name: a, url: /}]",
        "database: {max_connections: none, pool_size: 100}",
        "database: {name: 5}",
        "logging: {elasticsearch: [5]}",
    ],
)
def test_what_only_follows_from_another_fault_is_not_reported(text: str) -> None:
    """A field at fault is not compared by its default, which nobody wrote."""
    _, faults = check_text(text, FILE)

    assert len(faults) == 1, [fault.render(FILE) for fault in faults]


def test_positions_in_a_list_stay_those_of_the_file_when_an_item_is_at_fault() -> None:
    """The item after a faulty one keeps its number in messages."""
    _, faults = check_text(
        "alerts:\n- {name: a}\n- {name: b, condition: up == 0}\n- {name: b, condition: up == 1}\n", FILE
    )

    assert [(format_path(fault.path), fault.place and fault.place.line) for fault in faults] == [
        ("alerts[0].condition", 2),
        ("alerts[2].name", 4),
    ]
    assert "alerts[1].name" in faults[1].found
