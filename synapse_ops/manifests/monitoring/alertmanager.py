"""Renders alertmanager.yml: who is told what, how soon, and what is not told because something worse explains it.

Every alert carries `action` (alerting.actions): `failover` goes out at once, ungrouped, and to people as well; all
others are grouped. What always fires (the dead-man's switch) goes to the heartbeat and nowhere else. Alerts that nobody
is to be told of (`none`; the switch without a heartbeat) do not come here: Prometheus drops them (prometheus.py).
"""

from __future__ import annotations

from synapse_ops.manifests.document import Document, text_document, yaml_document
from synapse_ops.manifests.monitoring.alert_catalog import HEARTBEAT
from synapse_ops.manifests.monitoring.prometheus import prober_address
from synapse_ops.manifests.stack.parts import Place
from synapse_ops.manifests.stack.secret_files import MAIL_PASSWORD, PAGERDUTY_KEY, SLACK_WEBHOOK, TOKEN, secret_file
from synapse_ops.spec import Spec

PATHS: dict[Place, str] = {
    "hosts": "alertmanager/alertmanager.yml",
    "compose": "alertmanager/alertmanager.compose.yml",
    "kubernetes": "alertmanager/alertmanager.kubernetes.yml",
}
ROUTES_PATH = "alertmanager/tests/routes.tsv"
READS = frozenset(["alerting", "backup", "failover", "kubernetes", "name", "watch"])
WEBHOOK_PATH = "/alerts"

_PEOPLE = "notify"
_FAILOVER = "failover"
_HEART = "heartbeat"


def render_alertmanager(spec: Spec) -> tuple[Document, ...]:
    files = tuple(yaml_document(PATHS[place], alertmanager_yml(spec, place), reads=READS) for place in PATHS)
    return (*files, _routes_document(spec))


def alertmanager_yml(spec: Spec, place: Place) -> dict[str, object]:
    """Return the file's content for a place."""
    return {
        "global": {"resolve_timeout": "5m"},
        "route": {
            "receiver": _PEOPLE,
            "group_by": ["alertname", "job"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": _routes(spec),
        },
        "inhibit_rules": _inhibitions(spec),
        "receivers": _receivers(spec, place),
    }


def _routes(spec: Spec) -> list[dict[str, object]]:
    heart: dict[str, object] = {
        "matchers": [f'alertname="{HEARTBEAT}"'],
        "receiver": _HEART,
        "group_wait": "0s",
        # a group is looked at once an interval, and sent when the repeat is over: equal times would skip every other
        "group_interval": "10s",
        "repeat_interval": "55s",
    }
    return [
        *([heart] if spec.alerting.heartbeat_url is not None else []),
        {
            "matchers": ['action="failover"'],
            "receiver": _FAILOVER,
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "10s",
            "repeat_interval": "1m",
            "continue": True,
        },
        {"matchers": ['severity="critical"'], "receiver": _PEOPLE, "group_wait": "10s", "repeat_interval": "1h"},
        {"matchers": ['severity="info"'], "receiver": _PEOPLE, "group_wait": "5m", "repeat_interval": "1d"},
    ]


def _inhibitions(spec: Spec) -> list[dict[str, object]]:
    """Return what silences what. An empty label equals an empty one, so each rule asks that its labels are there."""
    lags = ["WalLag"] if spec.failover.standby is None else ["StandbyLag", "WalLag"]
    missing = ["DumpMissing", "SnapshotMissing", *(["RedisSnapshotMissing"] if spec.backup.redis is not None else [])]
    return [
        {  # a target that is gone explains what else is said of it
            "source_matchers": ['measure="up"', 'severity="critical"', 'instance!=""'],
            "target_matchers": ['measure!="up"', 'instance!=""'],
            "equal": ["stack", "job", "instance"],
        },
        {
            "source_matchers": ['severity="critical"', 'instance!=""'],
            "target_matchers": ['severity=~"warning|info"', 'instance!=""'],
            "equal": ["stack", "instance"],
        },
        {
            "source_matchers": ['alertname="CertificateExpiresNow"'],
            "target_matchers": ['alertname="CertificateExpiresSoon"'],
            "equal": ["stack"],
        },
        {  # without a primary there is no lag to speak of
            "source_matchers": ['alertname="primary_down"'],
            "target_matchers": [f'alertname=~"{"|".join(lags)}"'],
            "equal": ["stack"],
        },
        {  # what nobody watches, nobody knows
            "source_matchers": ['alertname="ProberDown"'],
            "target_matchers": [f'alertname=~"{"|".join([*missing, "ProberStuck"])}"'],
            "equal": ["stack"],
        },
    ]


def _receivers(spec: Spec, place: Place) -> list[dict[str, object]]:
    webhook = {
        "url": spec.alerting.webhook_url or default_webhook_url(spec, place),
        "send_resolved": True,
        "max_alerts": 0,
        "http_config": {
            "authorization": {
                "type": "Bearer",
                "credentials_file": secret_file(spec.alerting.webhook_token, TOKEN, place),
            },
            "follow_redirects": False,
        },
    }
    receivers: list[dict[str, object]] = [
        {"name": _PEOPLE, "webhook_configs": [webhook], **_people(spec, place)},
        {"name": _FAILOVER, "webhook_configs": [webhook]},
    ]
    if spec.alerting.heartbeat_url is not None:
        heart = {"url": spec.alerting.heartbeat_url, "send_resolved": False}
        receivers.append({"name": _HEART, "webhook_configs": [heart]})
    return receivers


def _people(spec: Spec, place: Place) -> dict[str, list[dict[str, object]]]:
    """Return Alertmanager's own receivers. Their secrets are files, as the webhook's token is."""
    told, alerting = dict[str, list[dict[str, object]]](), spec.alerting
    if alerting.mail is not None:
        mail = alerting.mail
        config: dict[str, object] = {"to": mail.to, "from": mail.sender, "smarthost": mail.server}
        if mail.user is not None:
            config["auth_username"] = mail.user
        if mail.password is not None:
            config["auth_password_file"] = secret_file(mail.password, MAIL_PASSWORD, place)
        told["email_configs"] = [config | {"send_resolved": True}]
    if alerting.slack is not None:
        url = secret_file(alerting.slack.webhook, SLACK_WEBHOOK, place)
        told["slack_configs"] = [{"channel": alerting.slack.channel, "api_url_file": url, "send_resolved": True}]
    if alerting.pagerduty is not None:
        key = secret_file(alerting.pagerduty.routing_key, PAGERDUTY_KEY, place)
        told["pagerduty_configs"] = [{"routing_key_file": key, "send_resolved": True}]
    return told


def default_webhook_url(spec: Spec, place: Place) -> str:
    """Return where Synapse Ops' prober takes alerts: the address that it is scraped at without `prometheus.targets`."""
    return f"http://{prober_address(spec, place)}{WEBHOOK_PATH}"


def route_table(spec: Spec) -> tuple[tuple[dict[str, str], tuple[str, ...]], ...]:
    """Return labels of alerts and the receivers that each must reach: what `amtool config routes test` verifies."""
    rows: list[tuple[dict[str, str], tuple[str, ...]]] = [
        ({"alertname": "DumpTooOld", "severity": "critical", "action": "notify"}, (_PEOPLE,)),
        ({"alertname": "WalLag", "severity": "warning", "action": "notify"}, (_PEOPLE,)),
        ({"alertname": "anything", "severity": "info", "action": "notify"}, (_PEOPLE,)),
        ({"alertname": "DagsterRunFailed", "severity": "critical"}, (_PEOPLE,)),
    ]
    if spec.alerting.heartbeat_url is not None:
        rows.append(({"alertname": HEARTBEAT, "severity": "none", "action": "notify"}, (_HEART,)))
    reach = {"notify": (_PEOPLE,), "failover": (_FAILOVER, _PEOPLE)}
    rows += [
        ({"alertname": name, "severity": "critical", "action": action}, reach[action])
        for name, action in spec.alerting.actions.items()
        if name != HEARTBEAT and action in reach
    ]
    return tuple(rows)


def _routes_document(spec: Spec) -> Document:
    lines = [f"{','.join(receivers)}\t{_labels(labels)}" for labels, receivers in route_table(spec)]
    head = "# receivers<TAB>labels: amtool config routes test --config.file=... --verify.receivers=RECEIVERS LABELS"
    return text_document(ROUTES_PATH, "\n".join([head, *lines]), frozenset(["alerting"]))


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())
