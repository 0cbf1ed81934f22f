"""PostgreSQL's own files for each node, and the URL by which clients find the one that takes writes.

Both nodes of a pair get the same settings: after a failover the standby is the primary, and a setting that only one of
them had would be lost with it. What differs is the node's name and whom it follows; `primary_conninfo` has an effect
only where standby.signal exists. A container overrides paths on its command line and mounts these very files.
"""

from __future__ import annotations

import re

from synapse_ops.domain.database.wal_space import wal_space
from synapse_ops.manifests.document import Document, text_document
from synapse_ops.manifests.stack.parts import Address, has_wal_receiver, node_addresses
from synapse_ops.manifests.stack.processes import CONNECT_TIMEOUT_S, KEEPALIVES_S, database_url
from synapse_ops.manifests.stack.units import milliseconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import MONITORING_USER

READS = frozenset({"name", "server", "worker", "database", "resources", "failover", "tls", "kubernetes", "backup"})

OTHER_CONNECTIONS = 20  # superuser, replication, backup, monitoring and probes, beside the application's
SENDERS = 10  # standby, WAL receiver, base backups, and room for each to come back before its old sender is gone
SLOT = "standby"
ROLES = ("primary", "standby")  # as the nodes of `failover.nodes` start
SUMMARIES_DAYS = 2  # for a base backup that comes late
PASSFILE = "/etc/synapse/replication.pgpass"
SERVER_MEMORY_FLOOR = 32 << 20
_HASH_MEMORY, _PARALLEL_WORKERS = 2, 2  # PostgreSQL's own defaults, written out because /dev/shm follows from them


def render_postgres(spec: Spec) -> tuple[Document, ...]:
    """Return postgresql.conf and pg_hba.conf of each node, and the clients' URL."""
    hba = pg_hba(spec)
    documents = [text_document("postgres/database-url.txt", database_url(spec, "hosts"), READS)]
    for role in ROLES[: len(spec.failover.nodes)]:
        documents.append(text_document(f"postgres/{role}/postgresql.conf", postgresql_conf(spec, role), READS))
        documents.append(text_document(f"postgres/{role}/pg_hba.conf", hba, READS))
    return tuple(documents)


def postgresql_conf(spec: Spec, role: str) -> str:
    """Return the settings of one node. role: primary or standby, as the nodes start."""
    node = spec.failover.nodes[ROLES.index(role)]
    sections = {
        "Connections": _connections(spec, node_port(spec, role)),
        "TLS": _tls(spec),
        "Memory": _memory(spec),
        "Write-ahead log and replication": _replication(spec, node) | _following(spec, node),
        "Archiving": {"archive_mode": "off"},  # WAL is streamed to the receiver, which keeps a slot
        "Time limits": _limits(spec),
        "Log": _log(),
    }
    text = f"# PostgreSQL 16 to 18, node {node}. Data checksums are switched on by initdb --data-checksums.\n"
    for title, settings in sections.items():
        text += f"\n# {title}\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
    return text


def node_port(spec: Spec, role: str) -> int:
    """Return the port of a node on its host, as `database.nodes` says."""
    return node_addresses(spec, "hosts")[ROLES.index(role)].port


def _connections(spec: Spec, port: int) -> dict[str, str]:
    return {
        "listen_addresses": quoted("*"),
        "port": str(port),
        "max_connections": str(server_connections(spec)),
        "superuser_reserved_connections": "3",
        "password_encryption": "scram-sha-256",
        "tcp_keepalives_idle": str(KEEPALIVES_S),
        "tcp_keepalives_interval": str(CONNECT_TIMEOUT_S),
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30s",
    }


def server_connections(spec: Spec) -> int:
    """Return `max_connections` of the server: the application's, and those of everything that keeps it safe."""
    return spec.database.max_connections + OTHER_CONNECTIONS


def _tls(spec: Spec) -> dict[str, str]:
    return {
        "ssl": "on",
        "ssl_cert_file": quoted(spec.tls.cert_file),
        "ssl_key_file": quoted(spec.tls.key_file),
        "ssl_min_protocol_version": quoted(spec.tls.min_version),
    }


def _memory(spec: Spec) -> dict[str, str]:
    limit = spec.resources.limits.memory
    return {
        "shared_buffers": _kilobytes(max(limit // 4, SERVER_MEMORY_FLOOR // 4)),
        "effective_cache_size": _kilobytes(max(limit * 3 // 4, SERVER_MEMORY_FLOOR)),
        "work_mem": _kilobytes(_sort_memory(spec)),
        "hash_mem_multiplier": str(_HASH_MEMORY),
        "max_parallel_workers_per_gather": str(_PARALLEL_WORKERS),
        "maintenance_work_mem": _kilobytes(_maintenance_memory(spec)),
        "huge_pages": "try",
    }


def _sort_memory(spec: Spec) -> int:
    per_sort = spec.resources.limits.memory // (8 * server_connections(spec))
    return min(max(per_sort, 1 << 20), 64 << 20)


def _maintenance_memory(spec: Spec) -> int:
    return min(max(spec.resources.limits.memory // 16, 1 << 20), 1 << 30)


def shared_memory(spec: Spec) -> int:
    """Return the size of /dev/shm, in whole MiB: what a parallel hash join of each connection and a parallel VACUUM
    may ask for, and no more than is left beside shared_buffers. A query that finds no room there fails; beyond the
    memory limit the kernel would kill the whole server.
    """
    join = _sort_memory(spec) * _HASH_MEMORY * (_PARALLEL_WORKERS + 1)
    wanted = server_connections(spec) * join + _maintenance_memory(spec)
    return max(min(wanted, spec.resources.limits.memory * 3 // 4), SERVER_MEMORY_FLOOR) >> 20 << 20


def _kilobytes(size: int) -> str:
    return f"{size >> 10}kB"


def _replication(spec: Spec, node: str) -> dict[str, str]:
    space = wal_space(spec.kubernetes.storage.database)
    return {
        "cluster_name": quoted(node),
        "wal_level": "replica",
        "wal_log_hints": "on",  # pg_rewind needs it, should checksums ever be off
        "max_wal_senders": str(SENDERS),
        "max_replication_slots": str(SENDERS),
        "max_slot_wal_keep_size": size_setting(space.slot_bytes),
        "wal_keep_size": size_setting(space.keep_bytes),
        "synchronous_commit": "on",
        "wal_sender_timeout": "30s",
        "max_wal_size": size_setting(space.checkpoint_bytes),
        "checkpoint_timeout": "5min",
        **_summaries(spec),
    }


def _summaries(spec: Spec) -> dict[str, str]:
    """Return what incremental base backups need on both nodes: which blocks changed, for longer than a chain grows."""
    full_every = spec.backup.database.base.full_every
    if full_every is None:
        return {}
    return {"summarize_wal": "on", "wal_summary_keep_time": f"{full_every.days + SUMMARIES_DAYS}d"}


def _following(spec: Spec, node: str) -> dict[str, str]:
    """Return how a node follows the other, whichever of the two takes writes."""
    others = [
        other for other in zip(spec.failover.nodes, node_addresses(spec, "hosts"), strict=True) if other[0] != node
    ]
    if not others:
        return {}
    [(_, address)] = others
    return {
        "hot_standby": "on",
        "hot_standby_feedback": "on",
        "primary_conninfo": quoted(primary_conninfo(spec, node, address)),
        "primary_slot_name": quoted(SLOT),
        "recovery_target_timeline": quoted("latest"),
        "wal_receiver_timeout": "30s",
        "wal_retrieve_retry_interval": "200ms",  # at its default of 5 s, half of all promotions took 5 s
    }


def has_followers(spec: Spec) -> bool:
    """Return whether somebody streams WAL as `database.replication_user`: a standby, or the WAL receiver."""
    return spec.failover.standby is not None or has_wal_receiver(spec)


def size_setting(size: int) -> str:
    """Return whole MiB as PostgreSQL's settings say them."""
    return f"{size >> 30}GB" if size and size % (1 << 30) == 0 else f"{size >> 20}MB"


def primary_conninfo(spec: Spec, node: str, followed: Address, *, authority: str = "", passfile: str = PASSFILE) -> str:
    """Return how a node follows the other; the password is in the passfile, never here."""
    settings = {
        "host": followed.host,
        "port": str(followed.port),
        "user": spec.database.replication_user,
        "application_name": node,
        "connect_timeout": "2",  # of one attempt; the next one follows at once
        "sslmode": "verify-full",
        "sslrootcert": authority or "system",
        "passfile": passfile,
    }
    return " ".join(f"{key}={_conninfo_value(value)}" for key, value in settings.items())


def _limits(spec: Spec) -> dict[str, str]:
    longest = max(spec.server.timeout, spec.worker.timeout)
    return {
        "authentication_timeout": "10s",
        "idle_in_transaction_session_timeout": f"{milliseconds(longest)}ms",
        "lock_timeout": "0",
        "statement_timeout": "0",  # dumps and index builds are long; the application's role has a limit of its own
        "deadlock_timeout": "1s",
    }


def application_role_settings(spec: Spec) -> dict[str, str]:
    """Return what `alter role ... set` gives the application's role: no statement outlives its caller's patience."""
    return {"statement_timeout": f"{milliseconds(max(spec.server.timeout, spec.worker.timeout))}ms"}


def _log() -> dict[str, str]:
    return {
        "log_destination": quoted("stderr"),
        "logging_collector": "off",
        "log_line_prefix": quoted("%m [%p] %q%u@%d "),
        "log_timezone": quoted("UTC"),
        "log_checkpoints": "on",
        "log_lock_waits": "on",
        "log_temp_files": "10MB",
        "log_min_duration_statement": "1s",
        "log_autovacuum_min_duration": "10s",
    }


def pg_hba(spec: Spec) -> str:
    """Return who may connect: over TLS with SCRAM, each role to what it needs; everyone else is rejected."""
    user, replication = hba_name(spec.database.user), hba_name(spec.database.replication_user)
    lines = ["# type  database  user  address  method", "local  all  all  scram-sha-256"]
    lines += [f"hostssl  {hba_name(name)}  {user}  all  scram-sha-256" for name in _databases(spec)]
    if has_followers(spec):
        lines += [
            f"hostssl  replication  {replication}  all  scram-sha-256",
            "# the WAL receiver asks in SQL, too",
            f"hostssl  postgres  {replication}  all  scram-sha-256",
        ]
    lines += [
        "# the exporter beside the server",
        f"hostssl  postgres  {MONITORING_USER}  samehost  scram-sha-256",
        "# the superuser, for backup, monitoring and failover",
        "hostssl  all  postgres  all  scram-sha-256",
        "hostssl  replication  postgres  all  scram-sha-256",
        "host  all  all  all  reject",
        "host  replication  all  all  reject",
    ]
    return "\n".join(lines)


def _databases(spec: Spec) -> tuple[str, ...]:
    names = (spec.database.name, *spec.database.databases)
    return tuple(dict.fromkeys(names))


def hba_name(name: str) -> str:
    """Return a database or role as one word of pg_hba.conf: quoted, so that `all` is a name; a leading slash would
    make it a pattern, so it becomes a pattern of that one name.
    """
    if name.startswith("/"):
        name = f"/^{re.escape(name)}$"
    return '"' + name.replace('"', '""') + '"'


def quoted(value: str) -> str:
    """Return a string as postgresql.conf takes it. Source: PostgreSQL docs, "Setting Parameters"."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _conninfo_value(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./:-]+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
