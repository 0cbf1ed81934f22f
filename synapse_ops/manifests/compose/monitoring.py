"""Prometheus, Alertmanager, Grafana, the exporters and the ELK chain in the compose file.

They mount the files of the targets that render them; none can be reached from outside but Grafana, on loopback.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from synapse_ops.manifests.compose.service import (
    INTERNAL,
    LARGE,
    MIDDLE,
    OUTSIDE,
    SMALL,
    Service,
    check,
    curl_check,
    healthy,
    helper_resources,
    http_check,
    mounted,
    service,
    share_memory,
    share_resources,
)
from synapse_ops.manifests.logs.pipeline import has_own_elasticsearch, needs_api_key
from synapse_ops.manifests.monitoring.grafana import IN_CONTAINER
from synapse_ops.manifests.stack.parts import (
    ALERTMANAGER_PORT,
    BLACKBOX_PORT,
    ELASTICSEARCH_PORT,
    GRAFANA_PORT,
    KIBANA_PORT,
    LOGSTASH_API_PORT,
    NODE_EXPORTER_PORT,
    PROMETHEUS_PORT,
    is_ours,
)
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, SECRETS_DIR
from synapse_ops.manifests.stack.secret_files import MAIL_PASSWORD, PAGERDUTY_KEY, SLACK_WEBHOOK, TOKEN
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOCAL_HOSTS, LOG_DIR

GRAFANA_PASSWORD = "grafana-password"  # noqa: S105 - the name of a secret, not a secret
ELASTICSEARCH_API_KEY = "elasticsearch-api-key"
_LARGEST_HEAP = 4 << 30  # Elastic's advice for Logstash, whose own default is 1 GiB whatever memory there is
_NOBODY = "65534:65534"
# the JVM unpacks native libraries there and loads them; Docker mounts a tmpfs noexec unless told otherwise
_NATIVE_CODE = ["/tmp:exec"]  # noqa: S108 - the container's own


def monitoring_services(spec: Spec) -> dict[str, Service]:
    """Return the services that watch the stack."""
    return {**_metrics(spec), "grafana": _grafana(spec), **_logs(spec)}


def _ways(*, is_outside: bool) -> tuple[str, ...]:
    """The internal network has no way out: who asks somebody else's server needs the other one, and only then."""
    return (INTERNAL, OUTSIDE) if is_outside else (INTERNAL,)


def _scrape_secrets(spec: Spec) -> dict[str, list[str]]:
    wanted = [QDRANT_API_KEY] if spec.qdrant.api_key is not None else []
    wanted += ["ca.crt"] if spec.qdrant.tls and is_ours(spec, "qdrant", "compose") else []
    return {"secrets": wanted} if wanted else {}


def _metrics(spec: Spec) -> dict[str, Service]:
    images = spec.docker.images
    return {
        "prometheus": service(
            images.prometheus,
            user=_NOBODY,
            resources=share_resources(spec, LARGE),
            healthcheck=http_check(PROMETHEUS_PORT, "/-/healthy"),
            networks=_ways(is_outside=not is_ours(spec, "qdrant", "compose")),
            listens=[PROMETHEUS_PORT],
            command=[
                "--config.file=/etc/prometheus/prometheus.yml",
                "--storage.tsdb.path=/prometheus",
                "--storage.tsdb.retention.time=30d",
                f"--web.listen-address=:{PROMETHEUS_PORT}",
            ],
            volumes=[
                mounted("../prometheus/prometheus.compose.yml", "/etc/prometheus/prometheus.yml"),
                mounted("../prometheus/rules", "/etc/prometheus/rules"),
                {"type": "volume", "source": "prometheus-data", "target": "/prometheus"},
            ],
            depends_on=healthy("alertmanager"),
            **_scrape_secrets(spec),
        ),
        "alertmanager": service(
            images.alertmanager,
            user=_NOBODY,
            resources=helper_resources(SMALL),
            healthcheck=http_check(ALERTMANAGER_PORT, "/-/healthy"),
            networks=_ways(is_outside=_tells_outside(spec)),
            listens=[ALERTMANAGER_PORT],
            command=[
                "--config.file=/etc/alertmanager/alertmanager.yml",
                "--storage.path=/alertmanager",
                f"--web.listen-address=:{ALERTMANAGER_PORT}",
            ],
            volumes=[
                mounted("../alertmanager/alertmanager.compose.yml", "/etc/alertmanager/alertmanager.yml"),
                {"type": "volume", "source": "alertmanager-data", "target": "/alertmanager"},
            ],
            secrets=[TOKEN, *_receivers_secrets(spec)],
        ),
        "blackbox-exporter": service(
            images.blackbox_exporter,
            user=_NOBODY,
            resources=helper_resources(SMALL),
            healthcheck=http_check(BLACKBOX_PORT, "/-/healthy"),
            networks=_ways(is_outside=any("://" in check.url for check in spec.health)),
            listens=[BLACKBOX_PORT],
            command=["--config.file=/etc/blackbox/blackbox.yml", f"--web.listen-address=:{BLACKBOX_PORT}"],
            volumes=[mounted("../prometheus/blackbox.yml", "/etc/blackbox/blackbox.yml")],
        ),
        "node-exporter": service(
            images.node_exporter,
            user=_NOBODY,
            resources=helper_resources(SMALL),
            healthcheck=http_check(NODE_EXPORTER_PORT, "/"),
            listens=[NODE_EXPORTER_PORT],
            command=["--path.rootfs=/host", f"--web.listen-address=:{NODE_EXPORTER_PORT}"],
            volumes=[mounted("/", "/host")],
            pid="host",
        ),
    }


def _tells_outside(spec: Spec) -> bool:
    told = spec.alerting
    return any((told.webhook_url, told.heartbeat_url, told.mail, told.slack, told.pagerduty))


def _receivers_secrets(spec: Spec) -> list[str]:
    told = spec.alerting
    wanted = {
        MAIL_PASSWORD: told.mail is not None and told.mail.password is not None,
        SLACK_WEBHOOK: told.slack is not None,
        PAGERDUTY_KEY: told.pagerduty is not None,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _grafana(spec: Spec) -> Service:
    return service(
        spec.docker.images.grafana,
        user="472:472",
        resources=share_resources(spec, MIDDLE),
        healthcheck=http_check(GRAFANA_PORT, "/api/health"),
        listens=[GRAFANA_PORT],
        networks=(INTERNAL, OUTSIDE),
        ports=[f"127.0.0.1:{GRAFANA_PORT}:{GRAFANA_PORT}"],
        environment={
            "GF_SECURITY_ADMIN_PASSWORD__FILE": f"{SECRETS_DIR}/{GRAFANA_PASSWORD}",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_SERVER_HTTP_PORT": str(GRAFANA_PORT),
            "GF_USERS_ALLOW_SIGN_UP": "false",
            **_opened_at(spec.grafana.url),
        },
        volumes=[
            mounted(
                "../grafana/provisioning/datasources/synapse.yml", "/etc/grafana/provisioning/datasources/synapse.yml"
            ),
            mounted(
                "../grafana/provisioning/dashboards/synapse.yml", "/etc/grafana/provisioning/dashboards/synapse.yml"
            ),
            # without a dashboard there is no such directory, and Docker would make one that belongs to root
            *([mounted("../grafana/dashboards", IN_CONTAINER)] if spec.grafana.dashboards else []),
            {"type": "volume", "source": "grafana-data", "target": "/var/lib/grafana"},
        ],
        secrets=[GRAFANA_PASSWORD],
        depends_on=healthy("prometheus"),
    )


def _opened_at(url: str) -> dict[str, str]:
    """Return what Grafana is told of the proxy in front of it, where people open it at another URL than its own."""
    found = urlsplit(url)
    if found.hostname in LOCAL_HOSTS and not found.path.strip("/"):
        return {}
    told = {"GF_SERVER_ROOT_URL": f"{url.rstrip('/')}/"}
    return told | ({"GF_SERVER_SERVE_FROM_SUB_PATH": "true"} if found.path.strip("/") else {})


def _logs(spec: Spec) -> dict[str, Service]:
    """Elsewhere Elasticsearch has its own Kibana: then neither is rendered."""
    if not spec.logging.is_shipped:
        return {}
    own = _own_elasticsearch(spec) if has_own_elasticsearch(spec, "compose") else {}
    return own | {"logstash": _logstash(spec, is_own=bool(own)), "filebeat": _filebeat(spec)}


def _own_elasticsearch(spec: Spec) -> dict[str, Service]:
    images = spec.docker.images
    return {
        "elasticsearch": service(
            images.elasticsearch,
            user="1000:0",
            resources=share_resources(spec, LARGE),
            healthcheck=curl_check(f"http://127.0.0.1:{ELASTICSEARCH_PORT}/_cluster/health"),
            listens=[ELASTICSEARCH_PORT],
            read_only=False,  # its start script writes its keystore beside its configuration
            tmpfs=_NATIVE_CODE,
            # its heap is half of the memory that it finds
            environment={
                "discovery.type": "single-node",
                "http.port": str(ELASTICSEARCH_PORT),
                "xpack.security.enabled": "false",
            },
            volumes=[{"type": "volume", "source": "elasticsearch-data", "target": "/usr/share/elasticsearch/data"}],
        ),
        "kibana": service(
            images.kibana,
            user="1000:0",
            resources=share_resources(spec, MIDDLE),
            healthcheck=curl_check(f"http://127.0.0.1:{KIBANA_PORT}/api/status"),
            networks=(INTERNAL, OUTSIDE),
            ports=[f"127.0.0.1:{KIBANA_PORT}:{KIBANA_PORT}"],
            read_only=False,  # it writes its bundles when it starts
            environment={
                "SERVER_PORT": str(KIBANA_PORT),
                "ELASTICSEARCH_HOSTS": f"http://elasticsearch:{ELASTICSEARCH_PORT}",
            },
            depends_on=healthy("elasticsearch"),
        ),
    }


def _logstash(spec: Spec, *, is_own: bool) -> Service:
    start = "sh /usr/share/logstash/set-up/set-up.sh; exec /usr/local/bin/docker-entrypoint"
    more: Service = {"depends_on": healthy("elasticsearch")} if is_own else {}
    heap = f"{min(_LARGEST_HEAP, share_memory(spec, LARGE) // 2) >> 20}m"
    if needs_api_key(spec, "compose"):
        start = f'export ELASTICSEARCH_API_KEY="$(cat {SECRETS_DIR}/{ELASTICSEARCH_API_KEY})"; {start}'
        more["secrets"] = [ELASTICSEARCH_API_KEY]
    return service(
        spec.docker.images.logstash,
        user="1000:1000",
        resources=share_resources(spec, LARGE),
        healthcheck=curl_check(f"http://127.0.0.1:{LOGSTASH_API_PORT}/"),
        networks=_ways(is_outside=not is_own),
        read_only=False,  # its start script edits its own settings
        tmpfs=_NATIVE_CODE,
        entrypoint=["sh", "-euc", start],
        environment={"LS_JAVA_OPTS": f"-Xms{heap} -Xmx{heap}"},
        volumes=[
            mounted("../logging/compose/logstash.yml", "/usr/share/logstash/config/logstash.yml"),
            mounted("../logging/compose/pipelines.yml", "/usr/share/logstash/config/pipelines.yml"),
            mounted("../logging/compose/logstash.conf", "/usr/share/logstash/pipeline/logstash.conf"),
            mounted("../logging/compose/set-up.sh", "/usr/share/logstash/set-up/set-up.sh"),
            mounted("../logging/ilm-policy.json", "/usr/share/logstash/set-up/ilm-policy.json"),
            mounted("../logging/index-template.json", "/usr/share/logstash/set-up/index-template.json"),
            {"type": "volume", "source": "logstash-data", "target": "/usr/share/logstash/data"},
        ],
        **more,
    )


def _filebeat(spec: Spec) -> Service:
    return service(
        spec.docker.images.filebeat,
        user="1000:0",  # its data directory, and so the new volume, is writable by group 0
        resources=helper_resources(SMALL),
        healthcheck=check(("CMD", "filebeat", "test", "config", "--strict.perms=false"), interval_s=60),
        command=["--strict.perms=false"],
        volumes=[
            mounted("../logging/compose/filebeat.yml", "/usr/share/filebeat/filebeat.yml"),
            {"type": "volume", "source": "application-logs", "target": LOG_DIR, "read_only": True},
            {"type": "volume", "source": "filebeat-data", "target": "/usr/share/filebeat/data"},
        ],
        depends_on=healthy("logstash"),
    )
