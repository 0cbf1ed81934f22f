"""Specs that differ in everything that monitoring documents read."""

from __future__ import annotations

from synapse_ops.spec.measures import MEASURES

_CONDITIONS = {"part": "> 50%", "time": "> 5m", "size": ">= 1Gi", "number": "> 3", "state": "== 0"}
_ALL = ", ".join(
    f"{{name: m_{name}, condition: {name} {_CONDITIONS[measure.kind]}}}" for name, measure in MEASURES.items()
)

SPECS = {
    "defaults": "name: synapse\n",
    "every measure": f"alerts: [{_ALL}]\n",
    "every measure, the other way": "alerts: ["
    + ", ".join(
        f"{{name: m_{name}, condition: {name} {_CONDITIONS[m.kind].replace('>', '<').replace('== 0', '!= 1')}}}"
        for name, m in MEASURES.items()
    )
    + "]\n",
    "elsewhere": (
        "name: far\n"
        "database: {host: db.example.org, port: 6432, databases: [a, 'b \"c\"'], "
        "nodes: {db-primary: '10.0.0.1:5432', db-standby: '[2001:db8::2]:5432'}}\n"
        "redis: {host: '2001:db8::3'}\n"
        "qdrant: {nodes: ['https://q0.example.org:6333', 'https://q1.example.org'], tls: true, "
        "ca_file: /etc/ca.crt, api_key: 'file:/k'}\n"
        "health_base_url: https://api.example.org\n"
        "alerting: {heartbeat_url: 'https://beat.example.org/x', "
        "actions: {service_down: none, primary_down: failover}}\n"
        "tls: {min_version: TLSv1.3}\n"
        "logging: {elasticsearch: ['https://e0.example.org', 'https://e1.example.org:9201'], "
        "index: 'logs-%{+YYYY.ww}'}\n"
    ),
    "nothing listed": "alerts: []\nhealth: []\ngrafana: {dashboards: []}\nalerting: {actions: {}}\n",
    "fast": (
        "prometheus: {scrape_interval: 1s, evaluation_interval: 500ms}\n"
        "alerts: [{name: gone, condition: up == 0, duration: 15s, severity: critical}]\n"
    ),
    "slow": (
        "prometheus: {scrape_interval: 2m}\ntime_zone: Europe/Berlin\n"
        "backup: {database: {schedule: '0 3 * * 0'}, redis: {schedule: '0 4 * * *'}}\n"
        "vectors: {sources: [{table: a, collection: documents}, {table: b, collection: other}]}\n"
    ),
}
