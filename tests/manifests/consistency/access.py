"""Who is let in, and whether what is asked is what answers: rules that a bad twin showed to be missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from synapse_ops.manifests.monitoring.alert_catalog import HEARTBEAT
from synapse_ops.manifests.servers.postgres import hba_name
from synapse_ops.manifests.stack.parts import QDRANT, PlaceName, address_of, is_ours
from tests.manifests.consistency.findings import (
    Finding,
    Rule,
    View,
    environment_of,
    name_of,
    roles_of,
    targets_of,
    told_in_pods,
)

_COMPOSE = "docker/compose.yaml"
_PUBLIC = {"proxy"}  # ends TLS; everything else is published on loopback at most
_HBA_FIELD = re.compile(r'"(?:[^"]|"")*"|[^\s"]+')
_PORT = re.compile(r":(\d+)(?=[,/])")


def only_the_proxy_is_published(view: View) -> Iterator[Finding]:
    """No service of the compose file but the proxy takes connections from other hosts: stores least of all."""
    for name, service in view.compose.get("services", {}).items():
        for port in service.get("ports") or ():
            if name not in _PUBLIC and not str(port).startswith(("127.0.0.1:", "[::1]:")):
                yield Finding("only_the_proxy_is_published", _COMPOSE, f"{name} publishes {port} to every host")


def clients_of_the_database_are_checked(view: View) -> Iterator[Finding]:
    """Every line of pg_hba.conf refuses, or asks for SCRAM and, over the network, for TLS."""
    rule = "clients_of_the_database_are_checked"
    for path in (f"postgres/{role}/pg_hba.conf" for role in roles_of(view.spec)):
        for line in view.text(path).splitlines():
            fields = line.split()
            if not fields or line.startswith("#") or fields[-1] == "reject":
                continue
            if fields[0] not in {"local", "hostssl"} or fields[-1] != "scram-sha-256":
                yield Finding(rule, path, f'"{line}" lets in without password or without TLS')


def whoever_connects_is_admitted(view: View) -> Iterator[Finding]:
    """Application, exporter and standby are each let into the database that they ask for, by the rendered pg_hba.conf
    of the servers beside them.
    """
    rule = "whoever_connects_is_admitted"
    services = view.compose["services"]
    in_compose = [view.text(f"postgres/{role}/pg_hba.conf") for role in roles_of(view.spec)]
    containers = [(_COMPOSE, str(name), service.get("environment", {}), service) for name, service in services.items()]
    places = [(in_compose if "db-primary" in services else [], containers)]
    pods = [(path, one) for path, found in view.workloads for one in found["spec"]["template"]["spec"]["containers"]]
    in_cluster = [
        found["data"]["pg_hba.conf"] for _, found in view.of_kind("ConfigMap") if "pg_hba.conf" in found["data"]
    ]
    places.append((in_cluster, [(path, one["name"], environment_of(one), one) for path, one in pods]))
    for tables, clients in places:
        for path, name, environment, container in clients:
            for database, user in _asked_of_the_database(environment, container):
                if not all(_admits(table, database, user) for table in tables):
                    yield Finding(rule, path, f'{name} asks for "{database}" as "{user}", which pg_hba.conf rejects')


def _asked_of_the_database(environment: Mapping[str, str], container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield database and role of each connection that a container will ask for."""
    if "SYNAPSE_DATABASE_URL" in environment:
        url = environment["SYNAPSE_DATABASE_URL"].replace("$$", "$")
        userinfo, _, rest = url.partition("://")[2].partition("@")
        yield unquote(rest.partition("/")[2].partition("?")[0]), unquote(userinfo)
    if "DATA_SOURCE_URI" in environment:
        yield environment["DATA_SOURCE_URI"].partition("/")[2].partition("?")[0], environment["DATA_SOURCE_USER"]
    for argument in container.get("args", container.get("command", ())):
        follows = re.search(r"^primary_conninfo=.*\buser=('(?:[^'\\]|\\.)*'|\S+)", argument.replace("$$", "$"))
        if follows:
            yield "replication", re.sub(r"\\(.)", r"\1", follows[1].removeprefix("'").removesuffix("'"))


def _admits(table: str, database: str, user: str) -> bool:
    """Tell whether the first line for a role's TLS connections to a database lets it in. Addresses are not judged."""
    databases = {"replication"} if database == "replication" else {"all", database, hba_name(database)}
    for line in table.splitlines():
        fields = _HBA_FIELD.findall(line)
        is_of_network = fields[:1] in (["hostssl"], ["host"])
        if is_of_network and fields[1] in databases and fields[2] in {"all", user, hba_name(user)}:
            return bool(fields[-1] != "reject")
    return False


def readiness_asks_more(view: View) -> Iterator[Finding]:
    """Where `health` has two checks of the API, liveness and readiness ask different ones: a dependency that is down
    must take a pod out of service, and never restart it.
    """
    paths = [check.url for check in view.spec.health if check.url.startswith("/")]
    if len(set(paths)) < 2:
        return
    for path, found in view.workloads:
        container = found["spec"]["template"]["spec"]["containers"][0]
        asked = [container[kind].get("httpGet", {}).get("path") for kind in ("livenessProbe", "readinessProbe")]
        if asked[0] is not None and asked[0] == asked[1]:
            yield Finding(
                "readiness_asks_more", path, f"{name_of(found)} is ready whenever it lives: both ask {asked[0]}"
            )


def the_image_is_the_service(view: View) -> Iterator[Finding]:
    """Image and compose ask the API for its health by one call, and start it by one command line."""
    rule, path = "the_image_is_the_service", "docker/Dockerfile"
    service: dict[str, Any] = view.compose["services"]["api"]
    text = view.text(path)
    check = re.search(r"^HEALTHCHECK .*\\\n  CMD (\[.*\])$", text, re.MULTILINE)
    test = [part.replace("$$", "$") for part in service["healthcheck"]["test"][1:]]
    if check is None or json.loads(check[1]) != test:
        yield Finding(rule, path, "the image is not asked for its health as compose asks")
    command = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    if command is None or json.loads(command[1]) != service["command"]:
        yield Finding(rule, path, "the image is not started as compose starts it")


def a_node_is_asked_where_clients_reach_it(view: View) -> Iterator[Finding]:
    """No health check asks PostgreSQL on its socket. There the server answers, too, which the image starts for a moment
    to create roles; whoever waits for the node would come before it listens.
    """
    services = view.compose.get("services", {}).items()
    asked = [(_COMPOSE, name, service.get("healthcheck", {}).get("test", ())) for name, service in services]
    for path, found in view.workloads:
        for container in found["spec"]["template"]["spec"]["containers"]:
            probes = (container.get(kind, {}) for kind in ("startupProbe", "livenessProbe", "readinessProbe"))
            asked += [(path, name_of(found), probe.get("exec", {}).get("command", ())) for probe in probes]
    for path, name, command in asked:
        if "pg_isready" in command and "--host" not in command:
            yield Finding("a_node_is_asked_where_clients_reach_it", path, f"{name} is asked on its socket")


def the_application_is_told_the_ports(view: View) -> Iterator[Finding]:
    """The URLs that API and worker are given name the spec's ports of database, Redis and Qdrant, in every place."""
    rule, spec = "the_application_is_told_the_ports", view.spec
    places: list[tuple[str, PlaceName, dict[str, str]]] = [
        (_COMPOSE, "compose", view.compose["services"][name].get("environment", {}))
        for name in ("api", "worker")
        if name in view.compose["services"]
    ]
    places += [(path, "kubernetes", told) for path, told in told_in_pods(view)]
    for path, place, told in places:
        wanted = {
            "SYNAPSE_DATABASE_URL": {spec.database.port},
            "SYNAPSE_REDIS_URL": {spec.redis.port},
            "SYNAPSE_QDRANT_URL": {address_of(spec, QDRANT, place).port},
        }
        if not is_ours(spec, "database", place):
            wanted["SYNAPSE_DATABASE_URL"] |= {int(one.rpartition(":")[2]) for one in spec.database.nodes.values()}
        for variable, ports in wanted.items():
            named = {int(found) for found in _PORT.findall(told.get(variable, "") + "/")}
            if named - ports:
                yield Finding(rule, path, f"{variable} names port {sorted(named)}, the spec {sorted(ports)}")


def the_database_takes_its_clients(view: View) -> Iterator[Finding]:
    """The server's max_connections leave the application `database.max_connections`, beside those reserved."""
    for path in (f"postgres/{role}/postgresql.conf" for role in roles_of(view.spec)):
        found = re.search(r"^max_connections = (\d+)$", view.text(path), re.MULTILINE)
        reserved = re.search(r"^superuser_reserved_connections = (\d+)$", view.text(path), re.MULTILINE)
        room = (int(found[1]) if found else 0) - (int(reserved[1]) if reserved else 3)
        if room < view.spec.database.max_connections:
            message = (
                f"{room} connections for clients, database.max_connections is {view.spec.database.max_connections}"
            )
            yield Finding("the_database_takes_its_clients", path, message)


def autoscaling_is_that_of_the_spec(view: View) -> Iterator[Finding]:
    """An autoscaler's bounds are those of `autoscaling`."""
    scaling = view.spec.autoscaling
    for path, found in view.of_kind("HorizontalPodAutoscaler"):
        bounds = (found["spec"].get("minReplicas"), found["spec"].get("maxReplicas"))
        if scaling is None or bounds != (scaling.min_replicas, scaling.max_replicas):
            message = f"{name_of(found)} keeps between {bounds[0]} and {bounds[1]} pods, against `autoscaling`"
            yield Finding("autoscaling_is_that_of_the_spec", path, message)


def prometheus_asks_the_api(view: View) -> Iterator[Finding]:
    """The job `api` asks the port of `server`, unless the spec names targets or another base URL."""
    rule, spec = "prometheus_asks_the_api", view.spec
    if "api" in spec.prometheus.targets:
        return
    paths = ["prometheus/prometheus.compose.yml", "prometheus/prometheus.kubernetes.yml"]
    paths += ["prometheus/prometheus.yml"] if spec.health_base_url is None else []
    for path in paths:
        for target in targets_of(view.yaml(path), "api"):
            if not target.endswith(f":{spec.server.port}"):
                yield Finding(rule, path, f"asks {target}, server.port is {spec.server.port}")


def failover_alerts_do_not_wait(view: View) -> Iterator[Finding]:
    """The first route takes alerts of action `failover`, ungrouped and at once: every second of it is downtime."""
    for path in (
        "alertmanager/alertmanager.yml",
        "alertmanager/alertmanager.compose.yml",
        "alertmanager/alertmanager.kubernetes.yml",
    ):
        # before it only the heartbeat's own route, which no other alert matches
        routes = [one for one in view.yaml(path)["route"]["routes"] if one["matchers"] != [f'alertname="{HEARTBEAT}"']]
        first = routes[0]
        if (first["matchers"], first["group_wait"], first.get("group_by")) != (['action="failover"'], "0s", ["..."]):
            yield Finding("failover_alerts_do_not_wait", path, "an alert that starts a failover waits or is grouped")


def alerts_link_to_runbooks(view: View) -> Iterator[Finding]:
    """Each alert's runbook_url names a page where `alerting.runbook_url` says that the runbooks are."""
    path = "prometheus/rules/alerts.yml"
    base = re.escape((view.spec.alerting.runbook_url or "docs/runbooks").rstrip("/"))
    for group in view.yaml(path)["groups"]:
        for alert in group["rules"]:
            url = alert.get("annotations", {}).get("runbook_url", "")
            if not re.fullmatch(rf"{base}/[a-z0-9-]+\.md", url):
                yield Finding("alerts_link_to_runbooks", path, f'{alert.get("alert")} links to "{url}"')


def logs_find_their_way(view: View) -> Iterator[Finding]:
    """Logstash in compose has a way out to nodes that are no services, and the key that it sends; whoever sets up
    Elasticsearch loads the policy that the index template names.
    """
    if not view.spec.logging.elasticsearch:
        return
    rule, service = "logs_find_their_way", view.compose["services"]["logstash"]
    pipeline = view.text("logging/compose/logstash.conf")
    for host in re.findall(r'https?://(\[[^]]+\]|[^:/"]+)', pipeline):
        if host not in view.compose["services"] and "outside" not in service["networks"]:
            yield Finding(rule, _COMPOSE, f"logstash has no way to {host}")
    if "${ELASTICSEARCH_API_KEY}" in pipeline and "ELASTICSEARCH_API_KEY" not in str(service.get("entrypoint")):
        yield Finding(rule, _COMPOSE, "logstash sends a key that it is not told")
    policy = view.yaml("logging/index-template.json")["template"]["settings"]["index.lifecycle.name"]
    for path in ("logging/set-up.sh", "logging/compose/set-up.sh"):
        if f"/_ilm/policy/{policy}' ilm-policy.json" not in view.text(path):
            yield Finding(rule, path, f"does not load the policy {policy} of the index template")


RULES: tuple[Rule, ...] = (
    only_the_proxy_is_published,
    clients_of_the_database_are_checked,
    whoever_connects_is_admitted,
    readiness_asks_more,
    the_image_is_the_service,
    a_node_is_asked_where_clients_reach_it,
    the_application_is_told_the_ports,
    the_database_takes_its_clients,
    autoscaling_is_that_of_the_spec,
    prometheus_asks_the_api,
    failover_alerts_do_not_wait,
    alerts_link_to_runbooks,
    logs_find_their_way,
)
