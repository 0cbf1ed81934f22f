"""What is monitored and where alerts go: `prometheus`, `grafana`, `logging`, `health`, `alerts`, `alerting`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from synapse_ops.spec.block import (
    AUTHORITY,
    FORM,
    URL_BASE,
    URL_PATH,
    AbsolutePath,
    Address,
    Block,
    Duration,
    DurationOrZero,
    Host,
    HttpUrl,
    Name,
    Port,
    Retention,
    Secret,
    Text,
    TextForm,
    is_authority,
    is_url,
)
from synapse_ops.spec.condition import CONDITION_FORM, Condition, parse_condition
from synapse_ops.spec.measures import check_measure
from synapse_ops.spec.secrets import SecretRef

AlertCondition = Annotated[
    Condition,
    AfterValidator(check_measure),
    BeforeValidator(parse_condition),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", FORM: CONDITION_FORM, "examples": ["cpu > 80%"]}),
]
Endpoint = Annotated[
    str,
    TextForm(
        rf"(?:https?://)?{AUTHORITY}",
        "host:port, an IPv6 address in brackets, with http:// or https:// or without",
        "localhost:9200",
        holds=lambda text: is_authority(text.split("//")[-1]),
    ),
]
IndexName = Annotated[
    str,
    TextForm(
        r"[a-z0-9][a-z0-9._-]*(?:%\{\+[A-Za-z._-]+\})?[a-z0-9._-]*",
        "a name of an index: lower-case letters, digits, . _ and -, with at most one date such as %{+YYYY.MM.dd}",
        "synapse-%{+YYYY.MM.dd}",
    ),
]
HealthUrl = Annotated[
    str,
    TextForm(
        rf"{URL_PATH}|{URL_BASE}(?:{URL_PATH})?",
        "a path such as /health, below health_base_url, or a URL with http:// or https://",
        "/health",
        holds=lambda text: text.startswith("/") or is_url(text),
    ),
]
Job = Literal[
    "api", "worker", "db", "redis", "qdrant", "node", "synapse_ops", "wal", "prometheus", "alertmanager", "blackbox"
]  # fmt: skip
Dashboard = Literal["system", "application", "database", "cache"]


class Prometheus(Block):
    """How often Prometheus measures and evaluates rules."""

    scrape_interval: Duration = Field(timedelta(seconds=15), description="Time between two measurements.")
    evaluation_interval: Duration = Field(timedelta(seconds=15), description="Time between two evaluations of rules.")
    targets: dict[Job, tuple[Address, ...]] = Field(
        {},
        description="Targets of a job, instead of those from the rest of the spec; an empty list scrapes nothing.",
    )


class Grafana(Block):
    """Grafana, and where its dashboards come from."""

    dashboards: tuple[Dashboard, ...] = Field(
        ("system", "application", "database", "cache"), description="Dashboards that are rendered, each at most once."
    )
    url: HttpUrl = Field("http://localhost:3000", description="URL of Grafana; alerts link to it.")


class Logging(Block):
    """The way of log lines: Filebeat to Logstash to Elasticsearch. Without a node of Elasticsearch there is none: log
    files are rotated where they are, and containers' own logs are bounded by the engine or the cluster.
    """

    beats_port: Port = Field(5044, description="Port on which Logstash takes Filebeat's lines.")
    elasticsearch: tuple[Endpoint, ...] = Field(
        ("localhost:9200",), description="Elasticsearch nodes; an empty list leaves the whole chain out."
    )
    index: IndexName = Field("synapse-%{+YYYY.MM.dd}", description="Name of the index, with Logstash's date pattern.")
    api_key: Secret | None = Field(
        None, description="Reference to an API key of Elasticsearch; Logstash finds it as ELASTICSEARCH_API_KEY."
    )
    paths: Annotated[tuple[AbsolutePath, ...], Field(min_length=1)] = Field(
        ("/var/log/synapse/*.log",),
        description="Log files that Filebeat reads and logrotate rotates, with * as in a shell.",
    )

    @property
    def is_shipped(self) -> bool:
        """Whether there is a log chain."""
        return bool(self.elasticsearch)


class HealthCheck(Block):
    """One endpoint that is probed."""

    name: Name = Field(description="Name of the check, once in the list.")
    url: HealthUrl = Field(description="URL, or a path below `health_base_url`.")
    interval: Duration = Field(timedelta(seconds=30), description="Time between two probes.")
    timeout: Duration = Field(timedelta(seconds=5), description="A probe that takes longer has failed.")


ProbedServer = Literal["nodes", "replication", "redis", "qdrant", "object_store", "certificates", "disk"]


class Watch(Block):
    """The prober: what it probes besides `health`, how often, and where it serves the results."""

    host: Host = Field("127.0.0.1", description="Address that its metrics are served on. Keep it private.")
    port: Port | None = Field(
        None, description="Port of its metrics; null is 9109, or a free one, written to watch/address.json."
    )
    servers: tuple[ProbedServer, ...] = Field(
        ("nodes", "replication", "redis", "qdrant", "object_store", "certificates", "disk"),
        description="What is probed besides the endpoints. Leave out what this stack does not have.",
    )
    interval: Duration = Field(timedelta(seconds=15), description="Time between two probes of a server.")
    timeout: Duration = Field(timedelta(seconds=5), description="A probe of a server that takes longer has failed.")
    store_interval: Duration = Field(
        timedelta(minutes=1),
        description="Time between two probes of the object store; each puts, gets and deletes an object.",
    )
    repository_interval: Duration = Field(
        timedelta(minutes=5), description="Time between two readings of the age of the last backup and proof."
    )
    history: Retention = Field(timedelta(days=90), description="How long history is kept. A bare number is days.")
    ca_file: AbsolutePath | None = Field(
        None, description="Authorities that https endpoints are checked against; null: those of the system."
    )


class Alert(Block):
    """One rule that fires while its condition holds."""

    name: Name = Field(description="Name of the alert, once in the list.")
    condition: AlertCondition = Field(description="Measure, comparison and threshold, such as `cpu > 80%`.")
    duration: DurationOrZero = Field(timedelta(minutes=5), description="How long the condition holds before it fires.")
    severity: Literal["info", "warning", "critical"] = Field("warning", description="How urgent it is.")


class Mail(Block):
    """Mail by an SMTP server with STARTTLS."""

    to: Text = Field(description="Addresses that are told, with commas.")
    sender: Text = Field(description="Address that it comes from.")
    server: Address = Field(description="SMTP server, as host:port.")
    user: Text | None = Field(None, description="Name at the server; null: no login.")
    password: Secret | None = Field(None, description="Reference to the password of `user`.")


class Slack(Block):
    """A channel of Slack."""

    channel: Text = Field(description="Channel or user that is told.")
    webhook: Secret = Field(description="Reference to the URL of the incoming webhook.")


class PagerDuty(Block):
    """A service of PagerDuty."""

    routing_key: Secret = Field(description="Reference to the integration key of its Events API v2.")


class Alerting(Block):
    """What is done when an alert fires."""

    actions: dict[Name, Literal["notify", "failover", "none"]] = Field(
        {"service_down": "notify", "primary_down": "failover"},
        description="Alert name to action. What is given here replaces the default as a whole.",
    )
    webhook_token: Secret = Field(
        SecretRef("env", "SYNAPSE_WEBHOOK_TOKEN"), description="Reference to the token that Alertmanager's calls carry."
    )
    webhook_url: HttpUrl | None = Field(
        None, description="URL that Alertmanager calls for each alert; null is Synapse Ops itself, at `watch.port`."
    )
    mail: Mail | None = Field(None, description="Who is told by mail; null: no mail is sent.")
    slack: Slack | None = Field(None, description="Who is told in Slack; null: no message is sent.")
    pagerduty: PagerDuty | None = Field(None, description="Who is told by PagerDuty; null: no incident is opened.")
    heartbeat_url: HttpUrl | None = Field(
        None,
        description="Called every minute while alerting works; its receiver must notice when they stop. null: none.",
    )
    runbook_url: HttpUrl | None = Field(
        None, description="Where the pages of docs/runbooks are served; null: alerts name the page's path."
    )


DEFAULT_HEALTH = (
    HealthCheck(name="api", url="/health"),
    HealthCheck(name="db", url="/health/db", interval=timedelta(minutes=1), timeout=timedelta(seconds=10)),
)
DEFAULT_ALERTS = (
    Alert(name="high_cpu", condition=parse_condition("cpu > 80%")),
    Alert(
        name="service_down",
        condition=parse_condition("up == 0"),
        duration=timedelta(minutes=1),
        severity="critical",
    ),
)
