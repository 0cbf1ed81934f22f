"""Renders the rule files of Prometheus: what is recorded, what alerts, and the tests that prove every alert."""

from __future__ import annotations

from synapse_ops.domain.runbooks import alarm_url
from synapse_ops.manifests.document import Document, yaml_document
from synapse_ops.manifests.monitoring.alert_catalog import own_alerts
from synapse_ops.manifests.monitoring.alert_measures import alert_of
from synapse_ops.manifests.monitoring.alert_rule import AlertRule, dashboard_uid
from synapse_ops.manifests.monitoring.alert_tests import alert_tests
from synapse_ops.manifests.monitoring.recording_rules import recording_groups
from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_duration

RECORDING_PATH = "prometheus/rules/recording.yml"
ALERTS_PATH = "prometheus/rules/alerts.yml"
TESTS_PATH = "prometheus/tests/alerts.yml"
_OF_THE_STACK = (
    "database", "failover", "grafana", "health", "kubernetes", "objectives", "prometheus", "qdrant", "time_zone",
    "vectors",
)  # fmt: skip
READS = frozenset(["alerting", "alerts", "backup", "proof", *_OF_THE_STACK])


def all_alerts(spec: Spec) -> tuple[AlertRule, ...]:
    """Return the spec's alerts and ours. An alert of the spec replaces one of ours of the same name."""
    chosen = tuple(alert_of(alert) for alert in spec.alerts)
    names = {alert.name for alert in chosen}
    return chosen + tuple(alert for alert in own_alerts(spec) if alert.name not in names)


def render_alert_rules(spec: Spec) -> tuple[Document, ...]:
    alerts = all_alerts(spec)
    chosen = {alert.name for alert in spec.alerts}
    recorded = recording_groups(spec)
    groups: list[dict[str, list[dict[str, object]] | str]] = [
        {"name": name, "rules": [_rule(spec, alert) for alert in alerts if (alert.name in chosen) == is_chosen]}
        for name, is_chosen in (("synapse-spec", True), ("synapse-own", False))
    ]
    alerting = [group for group in groups if group["rules"]]
    order = [str(group["name"]) for group in recorded] + [str(group["name"]) for group in alerting]
    return (
        yaml_document(RECORDING_PATH, {"groups": recorded}, reads=frozenset(["prometheus"])),
        yaml_document(ALERTS_PATH, {"groups": alerting}, reads=READS),
        yaml_document(
            TESTS_PATH,
            alert_tests(spec, alerts, order),
            reads=READS,
            about="Run with: promtool test rules alerts.yml. Each alert fires, not too early, and resolves.",
        ),
    )


def _rule(spec: Spec, alert: AlertRule) -> dict[str, object]:
    action = spec.alerting.actions.get(alert.name, "notify")
    if action == "failover" and not spec.failover.is_ours:
        action = "notify"
    labels = {"severity": alert.severity, "action": action, **dict(alert.labels)}
    annotations = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": runbook(spec, alert),
    }
    if alert.dashboard in spec.grafana.dashboards:
        annotations["dashboard_url"] = f"{spec.grafana.url.rstrip('/')}/d/{dashboard_uid(str(alert.dashboard))}"
    rule: dict[str, object] = {"alert": alert.name, "expr": f"{alert.expr}\n"}
    if alert.hold:
        rule["for"] = format_duration(alert.hold)
    return rule | {"labels": labels, "annotations": annotations}


def runbook(spec: Spec, alert: AlertRule) -> str:
    """Return where the alert's page is read; without `alerting.runbook_url` its path in this project."""
    return alarm_url(alert.page, spec.alerting.runbook_url)
