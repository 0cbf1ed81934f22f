"""Bad twins of the default bundle: each with one protection removed or one reference broken.

A mutant changes the rendered bytes, as a slip of a renderer or an edit by hand would, and nothing else: what it does
not change stands as it was rendered, so that no outside tool refuses a twin for the way it is written.
mutation_score.py and mutants_by_tools.py tell what catches each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import yaml

from synapse_ops.manifests.bundle import Bundle
from synapse_ops.manifests.yaml_text import write_yaml

API, WORKER = (("Deployment", f"synapse-{name}") for name in ("api", "worker"))
DATABASE, REDIS, QDRANT, PROBER = (
    ("StatefulSet", f"synapse-{name}") for name in ("db-primary", "redis", "qdrant", "synapse-ops")
)
POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
COMPOSE = "docker/compose.yaml"

Change = Callable[[Any], None]
Key = str | int


@dataclass(frozen=True)
class Mutant:
    """name: what was done. path: the document. change: its bytes, made worse; it must change them."""

    name: str
    path: str
    change: Callable[[str], str]

    def of(self, bundle: Bundle) -> Bundle:
        """Return the bundle with this one document changed."""
        document = bundle.by_path[self.path]
        worse = self.change(document.text)
        assert worse != document.text, f"{self.name}: nothing changed"
        documents = (replace(found, data=worse.encode()) if found is document else found for found in bundle.documents)
        return replace(bundle, documents=tuple(documents))


class _Exact(yaml.CSafeLoader):
    """Keeps a number's digits: the renderer's writer takes no float."""


_Exact.add_constructor("tag:yaml.org,2002:float", lambda _, node: Decimal(node.value))


def rewritten(text: str, change: Callable[[list[Any]], None]) -> str:
    """Return YAML with its objects changed, in the renderer's own style, the comment at its head kept."""
    lines = text.splitlines(keepends=True)
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    objects = list(yaml.load_all(text, _Exact))
    change(objects)
    return head + "---\n".join(map(write_yaml, objects))


def _at(found: Any, path: tuple[Key, ...]) -> Any:
    for key in path:
        found = found[key]
    return found


def _drop(*path: Key) -> Change:
    def change(found: Any) -> None:
        del _at(found, path[:-1])[path[-1]]

    return change


def _put(value: Any, *path: Key) -> Change:
    def change(found: Any) -> None:
        _at(found, path[:-1])[path[-1]] = value

    return change


def _tell(name: str, value: str) -> Change:
    """Return a change of one variable of a pod's first container."""

    def change(found: Any) -> None:
        [entry] = [each for each in _at(found, CONTAINER)["env"] if each["name"] == name]
        entry["value"] = value

    return change


def _object(path: str, which: tuple[str, str], change: Change) -> Callable[[str], str]:
    """Return a change of one object of a file of several."""

    def worse(objects: list[Any]) -> None:
        [found] = [one for one in objects if (one["kind"], one["metadata"]["name"]) == which]
        change(found)

    return lambda text: rewritten(text, worse)


def _whole(change: Change) -> Callable[[str], str]:
    return lambda text: rewritten(text, lambda objects: change(objects[0]))


def _text(old: str, new: str) -> Callable[[str], str]:
    def worse(text: str) -> str:
        assert old in text, f"{old!r} is not rendered"
        return text.replace(old, new, 1)

    return worse


def _kubernetes() -> Iterator[Mutant]:
    files = {
        API: "kubernetes/41-api.yaml",
        WORKER: "kubernetes/42-worker.yaml",
        DATABASE: "kubernetes/30-database.yaml",
        REDIS: "kubernetes/31-redis.yaml",
        QDRANT: "kubernetes/32-qdrant.yaml",
        PROBER: "kubernetes/43-synapse-ops.yaml",
    }
    hardening: dict[str, Change] = {
        "runAsNonRoot removed": _drop(*POD, "securityContext", "runAsNonRoot"),
        "seccompProfile removed": _drop(*POD, "securityContext", "seccompProfile"),
        "allowPrivilegeEscalation removed": _drop(*CONTAINER, "securityContext", "allowPrivilegeEscalation"),
        "capabilities kept": _drop(*CONTAINER, "securityContext", "capabilities"),
        "root file system writable": _drop(*CONTAINER, "securityContext", "readOnlyRootFilesystem"),
        "privileged": _put(True, *CONTAINER, "securityContext", "privileged"),
        "host network": _put(True, *POD, "hostNetwork"),
        "account token mounted": _drop(*POD, "automountServiceAccountToken"),
        "limits removed": _drop(*CONTAINER, "resources", "limits"),
        "requests removed": _drop(*CONTAINER, "resources", "requests"),
        "liveness probe removed": _drop(*CONTAINER, "livenessProbe"),
        "readiness probe removed": _drop(*CONTAINER, "readinessProbe"),
        "selector of another workload": _put("other", "spec", "selector", "matchLabels", "app.kubernetes.io/name"),
        "account that is not rendered": _put("nobody", *POD, "serviceAccountName"),
        "another namespace": _put("default", "metadata", "namespace"),
        "a field that does not exist": _put(1, *POD, "replicaCount"),
        "a port as text": _put("http-port", *CONTAINER, "ports", 0, "containerPort"),
        "runs as root": _put(0, *POD, "securityContext", "runAsUser"),
        "a volume without a mount": _put([], *CONTAINER, "volumeMounts"),
    }
    for which, path in files.items():
        for name, change in hardening.items():
            yield Mutant(f"{which[1]}: {name}", path, _object(path, which, change))
    api = files[API]
    for name, change in {
        "replicas beside an autoscaler": _put(3, "spec", "replicas"),
        "readiness asks what liveness asks": _put("/health", *CONTAINER, "readinessProbe", "httpGet", "path"),
        "liveness path of its own": _put("/alive", *CONTAINER, "livenessProbe", "httpGet", "path"),
        "liveness period of its own": _put(31, *CONTAINER, "livenessProbe", "periodSeconds"),
        "liveness timeout of its own": _put(9, *CONTAINER, "livenessProbe", "timeoutSeconds"),
        "timeout above the period": _put(61, *CONTAINER, "readinessProbe", "timeoutSeconds"),
        "listens on another port": _put(8001, *CONTAINER, "ports", 0, "containerPort"),
        "told another port": _put("8001", *CONTAINER, "args", 4),
        "preStop longer than the grace": _put(90, *CONTAINER, "lifecycle", "preStop", "sleep", "seconds"),
        "no preStop": _drop(*CONTAINER, "lifecycle"),
        "listens on loopback": _put("127.0.0.1", *CONTAINER, "args", 2),
        "another pool size": _tell("SYNAPSE_DATABASE_POOL_SIZE", "500"),
        "another memory limit": _put("5Gi", *CONTAINER, "resources", "limits", "memory"),
        "limit below the request": _put("100m", *CONTAINER, "resources", "limits", "cpu"),
        "another user than the image's": _put(10002, *POD, "securityContext", "runAsUser"),
        "another worker count than the image's": _put("9", *CONTAINER, "args", 6),
    }.items():
        yield Mutant(f"synapse-api: {name}", api, _object(api, API, change))
    for kind, name, change in (
        ("Service", "selects nothing", _put("other", "spec", "selector", "app.kubernetes.io/name")),
        ("Service", "target port that pods lack", _put(8999, "spec", "ports", 0, "targetPort")),
        ("HorizontalPodAutoscaler", "scales nothing", _put("gone", "spec", "scaleTargetRef", "name")),
        ("HorizontalPodAutoscaler", "old version of the API", _put("autoscaling/v2beta1", "apiVersion")),
        ("HorizontalPodAutoscaler", "fewer at most than at least", _put(1, "spec", "maxReplicas")),
        ("PodDisruptionBudget", "protects nothing", _put({"a": "b"}, "spec", "selector", "matchLabels")),
    ):
        yield Mutant(f"synapse-api, {kind}: {name}", api, _object(api, (kind, "synapse-api"), change))


def _network() -> Iterator[Mutant]:
    network, entry = "kubernetes/20-network.yaml", "kubernetes/50-entry.yaml"
    policy, deny = ("NetworkPolicy", "synapse-api"), ("NetworkPolicy", "synapse-default-deny")
    for which, name, change in (
        (deny, "egress allowed", _put(["Ingress"], "spec", "policyTypes")),
        (deny, "one pod only", _put({"matchLabels": {"a": "b"}}, "spec", "podSelector")),
        (deny, "allows everything", _put([{}], "spec", "ingress")),
        (policy, "selects nothing", _put({"a": "b"}, "spec", "podSelector", "matchLabels")),
        (policy, "port that pods lack", _put(8999, "spec", "ingress", 0, "ports", 0, "port")),
        (policy, "no egress to the database", _drop("spec", "egress", 0)),
        (
            policy,
            "another network than the firewall",
            _put({"ipBlock": {"cidr": "192.0.2.0/24"}}, "spec", "ingress", 0, "from", 0),
        ),
        (
            policy,
            "a network with host bits",
            _put({"ipBlock": {"cidr": "10.0.0.1/8"}}, "spec", "ingress", 0, "from", 0),
        ),
    ):
        yield Mutant(f"{which[1]}, NetworkPolicy: {name}", network, _object(network, which, change))
    ingress = ("Ingress", "synapse-entry")
    service = ("spec", "rules", 0, "http", "paths", -1, "backend", "service")
    for name, change in {
        "no such Service": _put("gone", *service, "name"),
        "no such port": _put(81, *service, "port", "number"),
        "without TLS": _drop("spec", "tls"),
    }.items():
        yield Mutant(f"Ingress: {name}", entry, _object(entry, ingress, change))
    namespace = "kubernetes/00-namespace.yaml"
    label = "pod-security.kubernetes.io/enforce"
    weaker = _put("baseline", "metadata", "labels", label)
    yield Mutant("Namespace: baseline", namespace, _object(namespace, ("Namespace", "synapse"), weaker))
    redis = "kubernetes/31-redis.yaml"
    twice = _text("name: synapse-redis\n", "name: synapse-other\n")
    yield Mutant("synapse-redis: its account is not rendered", redis, twice)
    copied = "kubernetes/00-namespace.yaml"
    yield Mutant("Namespace: rendered twice", copied, lambda text: f"{text}---\n{text}")
    headless = _drop("spec", "clusterIP")
    yield Mutant("synapse-redis, Service: not headless", redis, _object(redis, ("Service", "synapse-redis"), headless))
    yield Mutant("ConfigMap: not immutable", redis, _text("immutable: true", "immutable: false"))
    gone = _object(redis, REDIS, _put("gone", *POD, "volumes", 1, "configMap", "name"))
    yield Mutant("synapse-redis: ConfigMap that is not rendered", redis, gone)
    for path in ("kubernetes/41-api.yaml", "kubernetes/42-worker.yaml"):
        yield Mutant(f"{path}: another database port", path, _text("primary:5432", "primary:5433"))
        yield Mutant(f"{path}: another database host", path, _text("synapse-db-primary:", "synapse-db:"))
        yield Mutant(f"{path}: a password", path, _text("synapse_user@", "synapse_user:hunter2hunter2@"))
    other = _text(
        "kind: ConfigMap\nmetadata:\n  name: synapse-redis-", "kind: ConfigMap\nmetadata:\n  name: synapse-other-"
    )
    yield Mutant("ConfigMap: name that nobody mounts", redis, other)


def _compose() -> Iterator[Mutant]:
    for service in ("api", "worker", "db-primary", "redis", "qdrant", "synapse-ops"):
        for name, change in {
            "root file system writable": _drop("services", service, "read_only"),
            "capabilities kept": _drop("services", service, "cap_drop"),
            "new privileges": _drop("services", service, "security_opt"),
            "no health check": _drop("services", service, "healthcheck"),
            "no limits": _drop("services", service, "deploy"),
            "a network that is not there": _put(["gone"], "services", service, "networks"),
        }.items():
            yield Mutant(f"compose, {service}: {name}", COMPOSE, _whole(change))
    for name, change in {
        "depends on what is not there": _put(
            {"gone": {"condition": "service_healthy"}}, "services", "api", "depends_on"
        ),
        "does not wait for healthy": _put("service_started", "services", "api", "depends_on", "redis", "condition"),
        "another health timeout": _put("6s", "services", "api", "healthcheck", "timeout"),
        "another health interval": _put("31s", "services", "api", "healthcheck", "interval"),
        "another memory limit": _put("1G", "services", "api", "deploy", "resources", "limits", "memory"),
        "another pool size": _put("500", "services", "api", "environment", "SYNAPSE_DATABASE_POOL_SIZE"),
        "another Redis port": _put("redis://redis:6380/0", "services", "api", "environment", "SYNAPSE_REDIS_URL"),
        "another command line": _put(["app.main:app"], "services", "api", "command"),
        "a secret that is not listed": _put(["gone"], "services", "api", "secrets"),
    }.items():
        yield Mutant(f"compose, api: {name}", COMPOSE, _whole(change))
    yield Mutant(
        "compose: a database reachable from outside",
        COMPOSE,
        _whole(_put(["5432:5432"], "services", "db-primary", "ports")),
    )


def _prober() -> Iterator[Mutant]:
    for name, change in {
        "its port is not said": _drop("services", "synapse-ops", "expose"),
        "another port": _put(["9110"], "services", "synapse-ops", "expose"),
        "the token is not mounted": _drop("services", "synapse-ops", "secrets", 0),
        "its secrets are their owner's": _drop("services", "synapse-ops", "group_add"),
        "without its spec": _drop("services", "synapse-ops", "volumes", 0),
        "no way to the object store": _put(["internal"], "services", "synapse-ops", "networks"),
        "its history ends with it": _drop("services", "synapse-ops", "volumes", 1),
        "not rendered": _drop("services", "synapse-ops"),
    }.items():
        yield Mutant(f"compose, synapse-ops: {name}", COMPOSE, _whole(change))
    without_token = _drop("services", "alertmanager", "secrets")
    yield Mutant("compose, alertmanager: the token is not mounted", COMPOSE, _whole(without_token))
    path = "kubernetes/43-synapse-ops.yaml"
    secrets = ("spec", "template", "spec", "volumes", 2, "projected", "sources", 0, "secret", "items")
    for name, change in {
        "two of it": _put(2, "spec", "replicas"),
        "without a volume": _drop("spec", "volumeClaimTemplates"),
        "called by the pod's address": _drop(*CONTAINER, "livenessProbe", "httpGet", "httpHeaders"),
        "ready whenever it lives": _put("/healthz", *CONTAINER, "readinessProbe", "httpGet", "path"),
        "another port": _put(9110, *CONTAINER, "ports", 0, "containerPort"),
        "another spec": _put("/etc/other.yaml", *CONTAINER, "args", 3),
        "another state directory": _put("/tmp/state", *CONTAINER, "args", 5),
        "the token is not mounted": _drop(*secrets, 0),
    }.items():
        yield Mutant(f"synapse-synapse-ops: {name}", path, _object(path, PROBER, change))
    service = ("Service", "synapse-synapse-ops")
    for name, change in {
        "another port": _put(9110, "spec", "ports", 0, "port"),
        "not headless": _drop("spec", "clusterIP"),
        "selects nothing": _put("other", "spec", "selector", "app.kubernetes.io/name"),
    }.items():
        yield Mutant(f"synapse-synapse-ops, Service: {name}", path, _object(path, service, change))
    network, policy = "kubernetes/20-network.yaml", ("NetworkPolicy", "synapse-synapse-ops")
    closed = _object(network, policy, _put([], "spec", "ingress"))
    yield Mutant("synapse-synapse-ops, NetworkPolicy: nobody may scrape it", network, closed)
    inside = "docker/synapse-ops/infrastructure.yaml"
    for where in (inside, path):
        prefix = "" if where == inside else "synapse-"
        for name, old, new in (
            ("Redis is the container itself", f'{{"host": {prefix}redis,', '{"host": localhost,'),
            ("another port of Qdrant", '"port": 6333', '"port": 6334'),
            ("the standby is the primary", f"{prefix}db-standby:5432", f"{prefix}db-primary:5432"),
            ("another address of the API", f'"http://{prefix}api:', '"http://localhost:'),
            ("serves its container only", '"host": "0.0.0.0", "port": 9109', '"host": "127.0.0.1", "port": 9109'),
            ("another port", '"port": 9109', '"port": 9110'),
            ("another token", "/run/secrets/webhook-token", "/run/secrets/other-token"),
            ("a field that does not exist", '"repository_interval"', '"repo_interval"'),
        ):  # fmt: skip
            yield Mutant(f"{where}: {name}", where, _text(old, new))


def _start_gate() -> Iterator[Mutant]:
    around = _put(["docker-entrypoint.sh", "postgres"], "services", "db-primary", "entrypoint")
    yield Mutant("compose, db-primary: started around its gate", COMPOSE, _whole(around))
    cluster = "kubernetes/30-database.yaml"
    around = _put(["docker-entrypoint.sh", "postgres"], *CONTAINER, "command")
    yield Mutant("synapse-db-primary: started around its gate", cluster, _object(cluster, DATABASE, around))
    for path, prefix in (("docker/start-primary.sh", ""), (cluster, "synapse-")):
        for name, old, new in (
            ("starts without asking", 'while [ -s "$PGDATA/PG_VERSION" ] && ', "while false && "),
            ("a fenced node is asked nothing", 'if [ -e "$PGDATA/synapse.fenced" ]', "if false"),
            ("asks itself", f"other='host={prefix}db-standby ", f"other='host={prefix}db-primary "),
            ("asks another port of the prober", f"ask {prefix}synapse-ops 9109", f"ask {prefix}synapse-ops 9110"),
        ):
            yield Mutant(f"{path}: {name}", path, _text(old, new))
    network, policy = "kubernetes/20-network.yaml", ("NetworkPolicy", "synapse-db-primary")
    closed = _object(network, policy, lambda found: found["spec"]["egress"].pop())
    yield Mutant("synapse-db-primary, NetworkPolicy: no way to the prober", network, closed)


def _wal_receiver() -> Iterator[Mutant]:
    for name, change in {
        "not rendered": _drop("services", "wal-receiver"),
        "no way to the object store": _put(["internal"], "services", "wal-receiver", "networks"),
        "the database's URL is not mounted": _drop("services", "wal-receiver", "secrets", 1),
        "its state ends with it": _drop("services", "wal-receiver", "volumes", 1),
    }.items():
        yield Mutant(f"compose, wal-receiver: {name}", COMPOSE, _whole(change))
    path, deployment = "kubernetes/44-wal-receiver.yaml", ("Deployment", "synapse-wal-receiver")
    for name, change in {
        "two at once": _put({"type": "RollingUpdate"}, "spec", "strategy"),
        "a store that is away starts it anew": _put("/health", *CONTAINER, "livenessProbe", "httpGet", "path"),
        "no room for the spool": _put("1Gi", *POD, "volumes", 3, "emptyDir", "sizeLimit"),
        "waits for a lost node": _drop(*POD, "tolerations"),
        "killed at once": _put(5, *POD, "terminationGracePeriodSeconds"),
    }.items():
        yield Mutant(f"synapse-wal-receiver: {name}", path, _object(path, deployment, change))
    network, policy = "kubernetes/20-network.yaml", ("NetworkPolicy", "synapse-db-primary")
    text = "app.kubernetes.io/name: wal-receiver"

    def closed(found: Any) -> None:
        found["spec"]["ingress"] = [each for each in found["spec"]["ingress"] if text not in write_yaml(each)]

    closed_to_it = _object(network, policy, closed)
    yield Mutant("synapse-wal-receiver, NetworkPolicy: the primary does not let it in", network, closed_to_it)
    unit = "hosts/synapse-ops-wal.service"
    yield Mutant(f"{unit}: ends for good", unit, _text("Restart=always", "Restart=no"))


def _watchers() -> Iterator[Mutant]:
    for place, prober, api in (
        ("compose", "synapse-ops:9109", "api:8000"),
        ("kubernetes", "synapse-synapse-ops.synapse.svc:9109", "synapse-api-pods.synapse.svc"),
    ):
        host, port = prober.split(":")
        scraped, told = f"prometheus/prometheus.{place}.yml", f"alertmanager/alertmanager.{place}.yml"
        for path, name, old, new in (
            (scraped, "another port of the prober", prober, f"{host}:9110"),
            (scraped, "a service that is not there", api, f"gone-{api}"),
            (scraped, "an unknown key", "scrape_timeout", "scrape_time_out"),
            (told, "another port of the prober", f":{port}/alerts", ":9110/alerts"),
            (told, "a service that is not there", f"http://{host}", f"http://gone-{host}"),
            (told, "another token", "secrets/webhook-token", "secrets/other-token"),
            (told, "failover waits", 'group_wait: "0s"', 'group_wait: "5m"'),
            (told, "a receiver that is not there", "receiver: failover", "receiver: nobody"),
        ):  # fmt: skip
            yield Mutant(f"{path}: {name}", path, _text(old, new))
    managers = "prometheus/prometheus.compose.yml"
    yield Mutant(f"{managers}: another Alertmanager", managers, _text("- alertmanager:9093", "- alertmanager:9094"))
    balanced = "prometheus/prometheus.kubernetes.yml"
    yield Mutant(f"{balanced}: no targets", balanced, _text("dns_sd_configs", "other_sd_configs"))
    secrets = "kubernetes/secrets.txt"
    yield Mutant(f"{secrets}: one is not listed", secrets, _text(" --from-file=webhook-token", ""))


def _files() -> Iterator[Mutant]:
    database = "kubernetes/30-database.yaml"
    for path, name, old, new in (
        ("docker/Dockerfile", "runs as another user", "USER 10001:10001", "USER 0:0"),
        ("docker/Dockerfile", "another port", "EXPOSE 8000", "EXPOSE 8001"),
        ("docker/Dockerfile", "another health path", "8000/health'", "8000/healthz'"),
        ("docker/Dockerfile", "another health timeout", "--timeout=5s", "--timeout=50s"),
        ("docker/Dockerfile", "no health check", "HEALTHCHECK", "# HEALTHCHECK"),
        ("docker/Dockerfile", "another command line", '"--workers", "4"', '"--workers", "5"'),
        ("firewall/nftables.conf", "accepts by default", "filter; policy drop", "filter; policy accept"),
        ("firewall/nftables.conf", "22 from anywhere", "ip saddr 10.0.0.0/8 tcp dport 22", "tcp dport 22"),
        ("firewall/nftables.conf", "the database open", "tcp dport 80 accept", "tcp dport { 80, 5432 } accept"),
        ("firewall/nftables.conf", "443 closed", "    meta nfproto ipv4 tcp dport 443 accept\n", ""),
        ("tls/nginx.conf", "TLS 1.1", "ssl_protocols TLSv1.2", "ssl_protocols TLSv1.1 TLSv1.2"),
        ("docker/nginx.conf", "TLS 1.1", "ssl_protocols TLSv1.2", "ssl_protocols TLSv1.1 TLSv1.2"),
        ("tls/haproxy.cfg", "TLS 1.0", "ssl-min-ver TLSv1.2", "ssl-min-ver TLSv1.0"),
        ("tls/nginx.conf", "another port of the API", "localhost:8000", "localhost:8001"),
        ("tls/haproxy.cfg", "another port of the API", "localhost:8000", "localhost:8001"),
        ("tls/haproxy.cfg", "another health path", "uri /health/db ", "uri /healthz "),
        ("tls/haproxy.cfg", "another health interval", "inter 10s", "inter 60s"),
        (COMPOSE, "a node is healthy too early", f'{8 * " "}- "--host"\n{8 * " "}- localhost\n', ""),
        (database, "a node is ready too early", f'{16 * " "}- "--host"\n{16 * " "}- localhost\n', ""),
        ("postgres/primary/postgresql.conf", "TLS 1.0", "'TLSv1.2'", "'TLSv1'"),
        ("postgres/primary/postgresql.conf", "another port", "port = 5432", "port = 5433"),
        ("postgres/primary/postgresql.conf", "too few connections", "max_connections = 40", "max_connections = 4"),
        ("postgres/primary/pg_hba.conf", "without a password", "postgres  all  scram-sha-256", "postgres  all  trust"),
        ("postgres/primary/pg_hba.conf", "without TLS", "hostssl  all  postgres", "host  all  postgres"),
        ("postgres/standby/pg_hba.conf", "the exporter is unknown", "  synapse_monitoring  ", "  nobody  "),
        ("postgres/primary/pg_hba.conf", "the standby is unknown", '"synapse_replication"', "nobody"),
        ("postgres/primary/pg_hba.conf", "the application is unknown", '"synapse_user"', "nobody"),
        (database, "the exporter is unknown", "  synapse_monitoring  ", "  nobody  "),
        ("redis/redis.conf", "another port", "port 6379", "port 6380"),
        ("qdrant/config.yaml", "another port", "http_port: 6333", "http_port: 6332"),
        ("tls/certificate-names.txt", "a host without a name", "db-primary\n", ""),
        ("logging/compose/set-up.sh", "another policy", "_ilm/policy/synapse-logs", "_ilm/policy/other"),
        ("logging/compose/logstash.conf", "a node that cannot be reached", "http://elasticsearch:", "http://es.org:"),
        ("logging/logstash.conf", "TLS 1.1", '["TLSv1.2"', '["TLSv1.1", "TLSv1.2"'),
        ("logging/logstash.conf", "an option that does not exist", "port => 5044", "prot => 5044"),
        ("logging/logstash.conf", "a brace too few", "output {", "output "),
        ("prometheus/prometheus.yml", "another port of the API", "localhost:8000", "localhost:8001"),
        ("prometheus/prometheus.yml", "an unknown key", "scrape_timeout", "scrape_time_out"),
        ("prometheus/rules/alerts.yml", "a metric that nobody serves", "up{", "upp{"),
        ("prometheus/rules/alerts.yml", "an expression that does not parse", "expr: ", "expr: ((("),
        ("prometheus/rules/alerts.yml", "a runbook that does not exist", "/runbooks/", "/runbook/"),
        ("alertmanager/alertmanager.yml", "a receiver that is not there", "receiver: failover", "receiver: nobody"),
        ("alertmanager/alertmanager.yml", "failover waits", 'group_wait: "0s"', 'group_wait: "5m"'),
        ("grafana/dashboards/system.json", "a metric nobody serves", "node_load5", "node_lod5"),
        ("grafana/dashboards/system.json", "not JSON", "{", "{{"),
    ):  # fmt: skip
        yield Mutant(f"{path}: {name}", path, _text(old, new))


MUTANTS = (
    *_kubernetes(),
    *_network(),
    *_compose(),
    *_prober(),
    *_start_gate(),
    *_wal_receiver(),
    *_watchers(),
    *_files(),
)
