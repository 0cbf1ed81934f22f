"""What a valid spec does not achieve: values without effect, and notes on what it leaves unprotected."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.spec.document import Spec
from synapse_ops.spec.fixed import LOG_CHAIN, LOG_DIR, is_stack_database, is_this_machine
from synapse_ops.spec.log_index import days_written_to
from synapse_ops.spec.units import format_duration

_LONGEST_COOLDOWN = timedelta(hours=1)  # stabilizationWindowSeconds of an autoscaler
_NO_LOG_CHAIN = "logging.elasticsearch is empty: there is no log chain"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def ignored_values(spec: Spec) -> dict[str, str]:
    """Return field path -> the reason why its value has no effect."""
    return dict(_ignored(spec))


def _ignored(spec: Spec) -> Iterator[tuple[str, str]]:
    pods = spec.autoscaling
    if pods is not None:
        yield "kubernetes.replicas", f"autoscaling keeps between {pods.min_replicas} and {pods.max_replicas} pods"
    if pods is not None and pods.cooldown_period > _LONGEST_COOLDOWN:
        yield (
            "autoscaling.cooldown_period",
            f"Kubernetes takes {format_duration(_LONGEST_COOLDOWN)} at most, which is set",
        )
    if spec.object_store.ca_file is not None and not (spec.object_store.endpoint or "https:").startswith("https:"):
        yield "object_store.ca_file", "object_store.endpoint is http://, without certificates"
    if spec.qdrant.ca_file is not None and not (
        spec.qdrant.tls or any(url.startswith("https:") for url in spec.qdrant.nodes)
    ):
        yield "qdrant.ca_file", "qdrant.tls is false and no node is https://: there are no certificates"
    if spec.health_base_url is not None and all("://" in check.url for check in spec.health):
        yield "health_base_url", "every health.url is complete"
    failover = spec.failover
    decides = ("automatic", "timeout", "cool_down", "max_per_hour", "stonith_command", "dagster_grace")
    if failover.standby is None:
        for key in (*decides, "manager", "max_lag_bytes"):
            yield f"failover.{key}", "failover.standby is null: nothing can take over"
        for drill in ("failover", "switchover"):
            yield f"drills.{drill}", "failover.standby is null: nothing can take over"
    elif failover.manager == "external":
        for key in decides:
            yield f"failover.{key}", "failover.manager is external: another manager decides"
        for drill in ("failover", "switchover"):
            yield f"drills.{drill}", "failover.manager is external: another manager promotes"
    elif not failover.automatic:
        yield "failover.dagster_grace", "failover.automatic is false: no process competes for the lease"
    elif failover.max_per_hour > 1 and failover.cool_down * (failover.max_per_hour - 1) >= timedelta(hours=1):
        why = f"failover.cool_down {format_duration(failover.cool_down)} allows fewer"
        yield "failover.max_per_hour", why
    if not spec.logging.is_shipped:
        for key in ("beats_port", "index", "api_key"):
            yield f"logging.{key}", _NO_LOG_CHAIN
        for image in sorted(LOG_CHAIN):
            yield f"docker.images.{image}", _NO_LOG_CHAIN
    if spec.backup.database.wal_archiving == "off":
        yield "drills.recovery", "backup.database.wal_archiving is off: there is no base backup to rehearse with"
    if not failover.automatic or not failover.is_ours:
        for name, action in spec.alerting.actions.items():
            if action == "failover":
                yield f"alerting.actions.{name}", "failover is not automatic here: the alert only notifies"


def notes_on(spec: Spec) -> tuple[str, ...]:
    """Return what an operator ought to know about a spec that is valid, one sentence each, without full stop."""
    return tuple(_notes(spec))


def _notes(spec: Spec) -> Iterator[str]:
    if not spec.encryption.recipients:
        yield "encryption.recipients is empty: backups are not encrypted by us"
        if spec.backup.database.role_passwords == "encrypted":
            yield "backup.database.role_passwords is encrypted, and backups are not: dumps carry no role passwords"
    elif spec.encryption.identity is None:
        yield "encryption.identity is null: proofs need a key, so backups stay unproven unless one is given"
    qdrant = spec.qdrant
    if qdrant.api_key is not None and not qdrant.tls and qdrant.host not in _LOOPBACK:
        yield f'qdrant.api_key is sent to "{qdrant.host}" in the clear: qdrant.tls is false'
    redis = spec.redis
    if redis.password is not None and not redis.host.startswith("/") and redis.host not in _LOOPBACK:
        yield f'redis.password is sent to "{redis.host}" in the clear: connections to Redis do not use TLS'
    if spec.database.name not in spec.database.databases:
        yield f'database.databases does not list database.name "{spec.database.name}": it is not backed up'
    standby, database = spec.failover.standby, spec.database
    is_ours = is_stack_database(database.host, spec.kubernetes.stores.database)
    if standby is not None and standby not in database.nodes and not is_ours:
        yield (
            f'database.host "{database.host}" is elsewhere, and database.nodes does not name {standby}: it is sought '
            "by its name; where there is none, write `failover.standby: null`"
        )
    yield from _unreachable_nodes(spec)
    yield from _packages_of_others(spec)
    opened = {rule.port for rule in spec.firewall.inbound}
    if 22 not in opened:
        yield "firewall.inbound opens no port 22: where SSH listens there, loading the ruleset closes it to everyone"
    if 443 not in opened:
        yield "firewall.inbound opens no port 443: the proxy of a host cannot be reached from outside"
    if spec.redis.host.startswith("/"):
        yield f'redis.host "{spec.redis.host}" is a socket, and redis.conf opens none: add `unixsocket` on hosts'
    if spec.database.host.startswith("/"):
        yield f'database.host "{spec.database.host}" is a directory of sockets, which postgresql.conf does not name'
    emptied = {str(job) for job, addresses in spec.prometheus.targets.items() if not addresses}
    for job, effect in (("alertmanager", "no alert is delivered"), ("synapse_ops", "ProberDown never stops firing")):
        if job in emptied:
            yield f"prometheus.targets.{job} is empty: on hosts {effect}"
    if not spec.logging.is_shipped:
        yield "logging.elasticsearch is empty: no log chain is rendered, logs stay where they are, and are rotated"
    outside = [path for path in spec.logging.paths if not path.startswith(f"{LOG_DIR}/")]
    if outside and spec.logging.is_shipped:
        yield f"logging.paths {', '.join(outside)}: containers log to {LOG_DIR} alone, other paths do not exist there"
    if spec.tls.min_version != "TLSv1.2" and spec.kubernetes.entry.kind != "none":
        kind = "an Ingress" if spec.kubernetes.entry.kind == "ingress" else "a Gateway"
        yield f"tls.min_version {spec.tls.min_version}: {kind} has no field for it, set it in the controller too"
    if spec.logging.is_shipped and days_written_to(spec.logging.index) is None:
        yield f'logging.index "{spec.logging.index}" has no date: all lines go into one index and are never deleted'
    if spec.backup.database.wal_archiving == "off":
        yield "backup.database.wal_archiving is off: work since the last dump is lost with the server"
    if spec.backup.database.wal_archiving == "command":
        yield (
            "backup.database.wal_archiving is command: the rendered stack has no WAL receiver, and its servers no "
            "archive_command; `synapse-ops check` says what a server of your own needs"
        )
    yield from _objective_out_of_reach(spec)


def _objective_out_of_reach(spec: Spec) -> Iterator[str]:
    """An objective that no backup of its schedule can meet would be red for ever; the operator may know why."""
    rpo, backup = spec.objectives.rpo, spec.backup
    for name, block in (("database", backup.database), ("vectors", backup.vectors), ("redis", backup.redis)):
        gap = block.schedule.longest_gap(spec.time_zone) if block is not None else timedelta(0)
        if rpo is not None and rpo < gap:
            yield (
                f"objectives.rpo is {format_duration(rpo)}, and backup.{name}.schedule leaves {format_duration(gap)} "
                "between two backups: it is missed most of the time"
            )


def _unreachable_nodes(spec: Spec) -> Iterator[str]:
    """Nodes of the database on several machines meet through the firewall that is rendered for each of them.

    In the cluster they meet through their Services.
    """
    database = spec.database
    if spec.kubernetes.stores.database == "cluster":
        return
    places = [address.rpartition(":") for address in database.nodes.values()]
    if places and spec.failover.primary not in database.nodes and not is_this_machine(database.host):
        places.append((database.host, ":", str(database.port)))
    hosts = {host.strip("[]") for host, _, _ in places}
    if len(hosts) < 2:
        return
    for port in sorted({int(port) for _, _, port in places}):
        opened = [ipaddress.ip_network(rule.source) for rule in spec.firewall.inbound if rule.port == port]
        closed = sorted(host for host in hosts if not any(_may_be_in(host, network) for network in opened))
        if closed:
            yield f"database.nodes cannot connect: firewall.inbound opens no port {port} to {', '.join(closed)}"


def _packages_of_others(spec: Spec) -> Iterator[str]:
    """What the image starts is in the package that it copies, or installed by the lock file (not read here)."""
    docker = spec.docker
    copied = docker.source.rpartition("/")[2]
    for field, module in (("application", docker.application), ("worker_module", docker.worker_module)):
        package = module.partition(":")[0].partition(".")[0]
        if package != copied:
            yield f'docker.{field} is in "{package}", and the image copies "{copied}": the lock file must bring it'


def _may_be_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Return whether a host may be in a network: for a name that is unknown before it is resolved."""
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return True
