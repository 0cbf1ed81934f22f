"""What is rendered for monitoring passes its gates, and each broken twin of it is caught."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from synapse_ops.domain.runbooks import PAGES
from synapse_ops.manifests.document import Document
from synapse_ops.manifests.monitoring.alert_measures import RENDERED
from synapse_ops.manifests.monitoring.alert_rules import all_alerts
from synapse_ops.manifests.monitoring.targets import MONITORING
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.measures import MEASURES
from tests.manifests.consistency.metrics import METRICS
from tests.manifests.consistency.monitoring import expressions, monitoring_faults
from tests.manifests.consistency.promql_tree import selectors
from tests.manifests.monitoring.monitoring_specs import SPECS

ROOT = Path(__file__).parents[3]


def spec_of(text: str) -> Spec:
    loaded, faults = check_text(text, Path("infrastructure.yaml"))
    assert loaded is not None, faults
    return loaded.spec


def render(spec: Spec) -> tuple[Document, ...]:
    return tuple(document for _, render_one, *_ in MONITORING for document in render_one(spec))


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_renders_documents_that_pass(name: str) -> None:
    """The gates hold for specs that differ in everything these documents read."""
    assert list(monitoring_faults(render(spec_of(SPECS[name])))) == []


@pytest.mark.parametrize(
    ("path", "break_it", "fault"),
    [
        (
            "prometheus/prometheus.yml",
            lambda t: t.replace("scrape_interval", "scrape_intervall", 1),
            "scrape_intervall",
        ),
        ("prometheus/prometheus.yml", lambda t: t.replace("localhost:8000", "localhost"), "targets.0"),
        ("prometheus/rules/alerts.yml", lambda t: t.replace("severity: critical", "severity: bad", 1), "severity"),
        ("prometheus/rules/alerts.yml", lambda t: t.replace("up == 0", "up == (0"), "up == (0"),
        ("prometheus/rules/alerts.yml", lambda t: t.replace("up == 0", "upp == 0"), "nobody serves upp"),
        (
            "prometheus/rules/alerts.yml",
            lambda t: t.replace("alert: service_down", "alert: high_cpu"),
            "high_cpu twice",
        ),
        ("prometheus/rules/alerts.yml", lambda t: t.replace("/d/synapse-ops-system", "/d/gone"), "dashboard gone"),
        ("prometheus/rules/alerts.yml", lambda t: re.sub(r" +runbook_url.*\n", "", t, count=1), "runbook_url"),
        ("prometheus/rules/alerts.yml", lambda t: t.replace('for: "5m"', 'for: "5 minutes"', 1), "for"),
        ("prometheus/rules/recording.yml", lambda t: t.replace("rate(", "rat(", 1), "rat"),
        ("alertmanager/alertmanager.yml", lambda t: t.replace("receiver: failover", "receiver: gone"), "no receiver"),
        ("alertmanager/alertmanager.yml", lambda t: t.replace("credentials_file", "credentials", 1), "credentials"),
        ("grafana/dashboards/system.json", lambda t: t.replace('"id": 3', '"id": 2'), "panel id 2 twice"),
        ("grafana/dashboards/system.json", lambda t: re.sub(r'"unit": "s"', '"unit": ""', t), "no unit"),
        ("grafana/dashboards/system.json", lambda t: t.replace("${datasource}", "mine"), "data source of its own"),
        ("grafana/dashboards/system.json", lambda t: t.replace('"x": 8', '"x": 1', 1), "lies over another"),
        ("logging/logstash.conf", lambda t: t.replace("ssl_enabled", "ssl", 1), 'unknown option "ssl"'),
        ("logging/logstash.conf", lambda t: t.replace("fingerprint", "fingerprnt", 1), 'unknown plugin "fingerprnt"'),
        ("logging/logstash.conf", lambda t: t.replace("skip_on_invalid_json", "skip", 1), 'unknown option "skip"'),
        ("logging/logstash.conf", lambda t: t.replace("}", "", 1), "no pipeline"),
    ],
)
def test_a_broken_twin_is_caught(path: str, break_it: Callable[[str], str], fault: str) -> None:
    """A gate that nothing fails is no gate."""
    documents = render(spec_of("name: synapse\n"))
    [good] = [document for document in documents if str(document.path) == path]
    bad = dataclasses.replace(good, data=break_it(good.text).encode())
    assert bad.data != good.data

    faults = list(monitoring_faults(tuple(bad if document is good else document for document in documents)))

    assert any(where == path and fault in what for where, what in faults), faults


def test_every_measure_of_the_spec_is_rendered() -> None:
    """The spec knows exactly the measures that have an expression."""
    assert set(RENDERED) == set(MEASURES)


WAITING = "failover: {synchronous: standby}\n"  # has an alert of its own


def test_every_alert_has_a_runbook_and_every_runbook_an_alert_or_a_check() -> None:
    """A link out of an alert at night leads to a page that exists; a page that nothing links to is never read."""
    spec = spec_of("alerts: [" + ", ".join(_alert(name) for name in MEASURES) + "]\n" + WAITING)

    pages = {alert.page for alert in all_alerts(spec)}

    assert pages | PAGES == {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}


def _alert(measure: str) -> str:
    units = {"part": "50%", "time": "5m", "size": "1Gi", "number": "3", "state": "1"}
    return f"{{name: on_{measure}, condition: {measure} < {units[MEASURES[measure].kind]}}}"


def test_every_metric_of_the_catalogue_is_read() -> None:
    """The list of metrics is what the documents need, no more."""
    spec = spec_of("alerts: [" + ", ".join(_alert(name) for name in MEASURES) + "]\n" + WAITING)
    texts = {str(document.path): document.text for document in render(spec)}

    read = {metric for _, expr in expressions(texts) for metric, _ in selectors(expr)}

    assert set(METRICS) == read


def test_the_spec_decides_intervals_thresholds_and_links() -> None:
    """What an operator writes is what the servers get, in their own units."""
    spec = spec_of(
        "name: shop\n"
        "prometheus: {scrape_interval: 30s, evaluation_interval: 20s, targets: {node: ['10.0.0.7:9100'], worker: []}}\n"
        "grafana: {url: 'https://grafana.example.org/', dashboards: [system]}\n"
        "alerting: {runbook_url: 'https://wiki.example.org/runbooks'}\n"
        "alerts: [{name: slow, condition: p95_latency > 500ms, duration: 2m, severity: info},\n"
        "         {name: full, condition: memory >= 90%},{name: lag, condition: replication_lag_bytes > 16Mi}]\n"
    )
    texts = {str(document.path): document.text for document in render(spec)}

    prometheus = yaml.safe_load(texts["prometheus/prometheus.yml"])
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    rules = yaml.safe_load(texts["prometheus/rules/alerts.yml"])["groups"][0]["rules"]

    assert prometheus["global"]["scrape_interval"] == "30s"
    assert prometheus["global"]["external_labels"] == {"stack": "shop"}
    assert jobs["node"]["static_configs"] == [{"targets": ["10.0.0.7:9100"]}]
    assert "worker" not in jobs
    assert [rule["expr"].strip() for rule in rules] == [
        "job:synapse_request_seconds:p95 > 0.5",
        "instance:node_memory_used:ratio >= 0.9",
        "max(synapse_ops_replication_lag_bytes) > 16777216",
    ]
    assert rules[0]["for"] == "2m"
    assert rules[0]["annotations"]["runbook_url"] == "https://wiki.example.org/runbooks/measure-p95-latency.md"
    assert "dashboard_url" not in rules[0]["annotations"]
    assert rules[1]["annotations"]["dashboard_url"] == "https://grafana.example.org/d/synapse-ops-system"
    assert [path for path in texts if path.startswith("grafana/dashboards")] == ["grafana/dashboards/system.json"]


def test_logs_are_kept_as_long_as_the_spec_says() -> None:
    """One retention, in Elasticsearch and on hosts without it."""
    texts = {
        str(document.path): document.text
        for document in render(spec_of("cleanup: {logs: {retention: 14d, compress: false}}"))
    }
    policy = json.loads(texts["logging/ilm-policy.json"])["policy"]["phases"]

    assert policy["delete"]["min_age"] == "14d"
    assert "rotate 14" in texts["hosts/logrotate.conf"]
    assert "nocompress" in texts["hosts/logrotate.conf"]
    assert json.loads(texts["logging/index-template.json"])["index_patterns"] == ["synapse-*"]


def test_logrotate_does_not_compress_what_the_cleanup_assets_compress() -> None:
    """Below a root of `cleanup.log_roots` it only rotates, and of a root that holds no file of `logging.paths` it does
    not know. The assets rotate nothing: a file that a program keeps open would grow.
    """
    spec = spec_of(
        "logging: {paths: [/srv/logs/*.log, /srv/logs-2/*.log]}\n"
        "cleanup: {log_roots: [/srv/logs/, /srv/other], temp_roots: [/srv/temp]}"
    )
    [rules] = [document.text for document in render(spec) if str(document.path).startswith("hosts/")]

    others, cleaned = (part.splitlines() for part in rules.removesuffix("}\n").split("}\n"))
    assert others[0] == '"/srv/logs-2/*.log" {'
    assert cleaned[0] == '"/srv/logs/*.log" {'
    assert set(map(str.strip, others)) - set(map(str.strip, cleaned)) == {others[0], "compress", "delaycompress"}
    assert set(map(str.strip, cleaned)) - set(map(str.strip, others)) == {cleaned[0], "nocompress"}


@pytest.mark.parametrize(
    ("index", "delete"),
    [
        ("synapse-%{+YYYY.MM.dd}", "30d"),
        ("synapse-%{+yyyy.DDD.HH}", "30d"),
        ("synapse-%{+xxxx.ww}", "36d"),
        ("synapse-%{+YYYY.MM}", "60d"),
        ("synapse-%{+YYYY}", "395d"),
        ("synapse", None),
    ],
)
def test_an_index_that_is_still_written_to_is_not_deleted(index: str, delete: str | None) -> None:
    """Elasticsearch counts from an index' first line."""
    texts = {str(document.path): document.text for document in render(spec_of(f"logging: {{index: '{index}'}}"))}
    phases = json.loads(texts["logging/ilm-policy.json"])["policy"]["phases"]

    assert phases.get("delete", {}).get("min_age") == delete


@pytest.mark.parametrize(
    ("host", "asked"),
    [("127.0.0.1", "localhost"), ("::", "localhost"), ("10.0.0.5", "10.0.0.5"), ("fd00::5", "[fd00::5]")],
)
def test_the_prober_is_asked_where_it_listens(host: str, asked: str) -> None:
    """By Prometheus and by Alertmanager: otherwise no alert would arrive, and no failover begin."""
    texts = {
        str(document.path): document.text for document in render(spec_of(f"watch: {{host: '{host}', port: 9200}}"))
    }

    [job] = [
        job
        for job in yaml.safe_load(texts["prometheus/prometheus.yml"])["scrape_configs"]
        if job["job_name"] == "synapse_ops"
    ]
    assert job["static_configs"] == [{"targets": [f"{asked}:9200"]}]
    assert f"http://{asked}:9200/alerts" in texts["alertmanager/alertmanager.yml"]


@pytest.mark.parametrize(
    ("nodes", "scheme", "static"),
    [
        (["https://a:1", "https://b:1"], "https", [{"targets": ["a:1", "b:1"]}]),
        (["http://a:1", "http://b:1"], None, [{"targets": ["a:1", "b:1"]}]),
        (
            ["https://a", "http://b:1"],
            "https",
            [{"targets": ["a:443"]}, {"targets": ["b:1"], "labels": {"__scheme__": "http"}}],
        ),
    ],
)
def test_each_node_of_qdrant_is_scraped_by_its_own_scheme(
    nodes: list[str], scheme: str | None, static: list[dict[str, object]]
) -> None:
    """A node asked by the other's would be down for ever."""
    texts = {
        str(document.path): document.text for document in render(spec_of(f"qdrant: {{nodes: {json.dumps(nodes)}}}"))
    }

    for name in ("prometheus", "prometheus.compose", "prometheus.kubernetes"):
        jobs = yaml.safe_load(texts[f"prometheus/{name}.yml"])["scrape_configs"]
        [job] = [job for job in jobs if job["job_name"] == "qdrant"]
        assert (job.get("scheme"), job["static_configs"]) == (scheme, static)


def test_secrets_are_named_and_never_written() -> None:
    """A rendered file says where a token is found."""
    texts = "".join(
        document.text
        for document in render(
            spec_of(
                "qdrant: {host: q.example.org, tls: true, api_key: 'file:/etc/synapse/qdrant.key'}\n"
                "alerting: {webhook_token: 'env:HOOK', webhook_url: 'https://hooks.example.org/a'}\n"
                "logging: {api_key: 'env:ELASTIC', elasticsearch: ['https://e.example.org']}\n"
            )
        )
    )

    assert "credentials_file: /etc/synapse/qdrant.key" in texts
    assert "credentials_file: /run/secrets/webhook-token" in texts
    assert 'api_key => "${ELASTICSEARCH_API_KEY}"' in texts
    assert "credentials:" not in texts
