"""What Prometheus and Alertmanager take, as strict models: the part of their formats that we render, and nothing else.

A key that is not here is a slip or a wish for more; both deserve to be noticed before a server refuses the file.
Sources: prometheus.io/docs "Configuration", "Recording rules", "Alerting rules"; Alertmanager "Configuration".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DURATION = r"^(?:0|(?:\d+w)?(?:\d+d)?(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?)$"
Duration = Annotated[str, Field(pattern=DURATION, min_length=1)]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]*$")]
HostPort = Annotated[str, Field(pattern=r"^(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
Matcher = Annotated[str, Field(pattern=r'^[A-Za-z_][A-Za-z0-9_]*(?:=~|!~|!=|=)"[^"]*"$')]


class Strict(BaseModel):
    """No unknown key, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StaticConfig(Strict):
    targets: list[HostPort | Url] = Field(min_length=1)
    labels: dict[LabelName, str] = {}


class Relabel(Strict):
    source_labels: list[LabelName] = []
    target_label: LabelName | None = None
    replacement: str | None = None
    regex: str | None = None
    action: Literal["replace", "drop", "keep"] = "replace"


class DnsConfig(Strict):
    names: list[str] = Field(min_length=1)
    type: Literal["A", "AAAA"]
    port: int = Field(ge=1, le=65535)


class Authorization(Strict):
    type: Literal["Bearer"]
    credentials_file: str


class ScrapeTls(Strict):
    ca_file: str


class ScrapeConfig(Strict):
    job_name: str
    scheme: Literal["http", "https"] = "http"
    scrape_interval: Duration | None = None
    scrape_timeout: Duration | None = None
    metrics_path: str = "/metrics"
    params: dict[str, list[str]] = {}
    authorization: Authorization | None = None
    tls_config: ScrapeTls | None = None
    static_configs: list[StaticConfig] = []
    dns_sd_configs: list[DnsConfig] = []
    relabel_configs: list[Relabel] = []

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        """A job that finds nothing says so by silence: no series, and no alert on them."""
        if bool(self.static_configs) == bool(self.dns_sd_configs):
            raise ValueError("either static_configs or dns_sd_configs, and one of them")
        return self


class Global(Strict):
    scrape_interval: Duration
    scrape_timeout: Duration
    evaluation_interval: Duration
    external_labels: dict[LabelName, str]


class Alertmanagers(Strict):
    static_configs: list[StaticConfig] = Field(min_length=1)


class Alerting(Strict):
    alert_relabel_configs: list[Relabel] = []
    alertmanagers: list[Alertmanagers]


class PrometheusFile(Strict):
    global_: Global = Field(alias="global")
    rule_files: list[str]
    alerting: Alerting
    scrape_configs: list[ScrapeConfig] = Field(min_length=1)


class RecordingRule(Strict):
    record: MetricName
    expr: str


class Annotations(Strict):
    summary: str = Field(min_length=1)
    description: str = Field(min_length=1)
    runbook_url: str = Field(pattern=r"\.md$")
    dashboard_url: Url | None = None


class AlertLabels(Strict):
    severity: Literal["critical", "warning", "info", "none"]
    action: Literal["notify", "failover", "none"]
    measure: str | None = None


class AlertingRule(Strict):
    alert: str = Field(min_length=1)
    expr: str
    for_: Duration | None = Field(None, alias="for")
    labels: AlertLabels
    annotations: Annotations


class RuleGroup(Strict):
    name: str
    rules: list[RecordingRule | AlertingRule] = Field(min_length=1)


class RuleFile(Strict):
    groups: list[RuleGroup]


class Route(Strict):
    receiver: str
    matchers: list[Matcher] = []
    group_by: list[str] = []
    group_wait: Duration | None = None
    group_interval: Duration | None = None
    repeat_interval: Duration | None = None
    continue_: bool = Field(False, alias="continue")
    routes: list[Route] = []


class Inhibition(Strict):
    source_matchers: list[Matcher] = Field(min_length=1)
    target_matchers: list[Matcher] = Field(min_length=1)
    equal: list[LabelName] = Field(min_length=1)


class HttpConfig(Strict):
    authorization: Authorization
    follow_redirects: bool


class Webhook(Strict):
    url: Url
    send_resolved: bool
    max_alerts: int = 0
    http_config: HttpConfig | None = None


class Receiver(Strict):
    name: str
    webhook_configs: list[Webhook] = Field(min_length=1)
    email_configs: list[dict[str, Any]] = []
    slack_configs: list[dict[str, Any]] = []
    pagerduty_configs: list[dict[str, Any]] = []


class AlertmanagerFile(Strict):
    global_: dict[str, Any] = Field(alias="global")
    route: Route
    inhibit_rules: list[Inhibition]
    receivers: list[Receiver] = Field(min_length=1)
