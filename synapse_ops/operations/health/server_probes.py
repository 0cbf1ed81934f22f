"""What each server of a stack is asked: PostgreSQL nodes, replication, Redis, Qdrant, S3, certificates, disks.

A server's probe is called `server/<name>`, which no entry of `health` can be. Secrets are resolved at each question, so
that a rotated one is used at once, and a missing one affects only that probe's verdict.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from synapse_ops.domain.bounded_json import read_json
from synapse_ops.domain.health.servers import (
    DiskUse,
    WalPosition,
    judge_certificates,
    judge_disks,
    judge_qdrant,
    judge_redis,
    judge_replication,
    judge_server,
    judge_store,
)
from synapse_ops.domain.health.states import ProbeVerdict
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.health.asker import SERVER, Probe, Question
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import SecretRef
from synapse_ops.systems.probe_clients import HttpClients
from synapse_ops.systems.probe_stage import Stage

CERTIFICATE_INTERVAL_S = 300.0  # days are counted, and a renewed certificate should show within minutes
DISK_INTERVAL_S = 60.0
DISK = "server/disk"
STORE_PREFIX = "probes/"  # below the repository; described in docs/repository-format.md


def server_probes(stack: Stack, clients: HttpClients) -> Iterator[Probe]:
    """Yield the probes of `watch.servers`, in its order."""
    watch = stack.spec.watch
    interval_s, timeout_s = watch.interval.total_seconds(), watch.timeout.total_seconds()
    for kind in watch.servers:
        if kind == "nodes":
            for node in stack.spec.failover.nodes:
                target = f"PostgreSQL {node_address(stack, node)}"
                yield Probe(f"server/{node}", SERVER, target, interval_s, timeout_s, _ask_node(stack, node))
        elif kind == "replication" and stack.spec.failover.standby is not None:
            nodes = ", ".join(stack.spec.failover.nodes)
            yield Probe("server/replication", SERVER, nodes, interval_s, timeout_s, _ask_replication(stack))
        elif kind == "redis":
            redis = stack.spec.redis
            target = f"Redis {redis.host}:{redis.port}"
            yield Probe("server/redis", SERVER, target, interval_s, timeout_s, _ask_redis(stack))
        elif kind == "qdrant":
            urls = qdrant_urls(stack)
            for number, url in enumerate(urls, 1):
                name = "server/qdrant" if len(urls) == 1 else f"server/qdrant-{number}"
                yield Probe(name, SERVER, f"Qdrant {url}", interval_s, timeout_s, _ask_qdrant(stack, clients, url))
        elif kind == "object_store":
            url, every_s = stack.spec.backup.database.destination, watch.store_interval.total_seconds()
            yield Probe("server/object-store", SERVER, url, every_s, timeout_s, _ask_store(stack, clients))
        elif kind == "certificates":
            every_s = max(CERTIFICATE_INTERVAL_S, timeout_s)
            target = stack.spec.tls.cert_file
            yield Probe("server/certificates", SERVER, target, every_s, timeout_s, _ask_certificates(stack))
        elif kind == "disk":
            every_s = max(DISK_INTERVAL_S, timeout_s)
            yield Probe(DISK, SERVER, str(stack.state_dir), every_s, timeout_s, _ask_disk(stack))


def node_address(stack: Stack, node: str) -> str:
    """Return where a node is reached, for people: no secret is resolved for it."""
    database = stack.spec.database
    if node in database.nodes:
        return database.nodes[node]
    return f"{database.host if node == stack.spec.failover.primary else node}:{database.port}"


def node_conninfo(stack: Stack, node: str) -> str:
    """Return a libpq conninfo of one node as superuser. It holds the password: never log it. Raises ConfigError."""
    from psycopg.conninfo import make_conninfo

    from synapse_ops.systems.postgres.connection import conninfo_parts

    parts = conninfo_parts(stack.spec.database.admin.resolve())
    for name in ("target_session_attrs", "load_balance_hosts"):
        parts.pop(name, None)
    named = stack.spec.database.nodes.get(node)
    if named is not None:
        host, _, port = named.rpartition(":")
        parts |= {"host": host.strip("[]"), "port": port}
        parts.pop("hostaddr", None)
    elif node != stack.spec.failover.primary:
        parts["host"] = node
        parts.pop("hostaddr", None)
    parts["connect_timeout"] = str(max(2, round(stack.spec.watch.timeout.total_seconds())))
    return make_conninfo("", **parts)


def _ask_node(stack: Stack, node: str) -> Question:
    async def ask(stage: Stage) -> ProbeVerdict:
        from synapse_ops.systems.postgres.probe import read_facts

        facts = await read_facts(await asyncio.to_thread(node_conninfo, stack, node), stage)
        return judge_server(facts, is_alone=stack.spec.failover.standby is None)

    return ask


def _ask_replication(stack: Stack) -> Question:
    async def position(node: str, timeout_s: float) -> WalPosition | str:
        from synapse_ops.systems.postgres.probe import read_position

        stage = Stage()
        try:
            async with asyncio.timeout(timeout_s):
                return await read_position(await asyncio.to_thread(node_conninfo, stack, node), stage)
        except TimeoutError:
            return f"no answer within {timeout_s:g} s: {stage.words}"
        except SynapseOpsError as error:
            return error.detail.splitlines()[0] if error.detail else error.message

    async def ask(stage: Stage) -> ProbeVerdict:
        stage.words = "waiting for all nodes"
        timeout_s = 0.9 * stack.spec.watch.timeout.total_seconds()  # one silent node must not hide what the others say
        nodes = stack.spec.failover.nodes
        found = await asyncio.gather(*(position(node, timeout_s) for node in nodes))
        positions = dict(zip(nodes, found, strict=True))
        return judge_replication(positions, max_lag_bytes=stack.spec.failover.max_lag_bytes)

    return ask


def _ask_redis(stack: Stack) -> Question:
    async def ask(stage: Stage) -> ProbeVerdict:
        from synapse_ops.systems.redis.probe import read_info

        redis = stack.spec.redis
        password = await _resolved(redis.password)
        timeout_s = stack.spec.watch.timeout.total_seconds()
        info = await read_info(redis.host, redis.port, password=password, timeout_s=timeout_s, stage=stage)
        return judge_redis(info)

    return ask


def qdrant_urls(stack: Stack) -> tuple[str, ...]:
    """Return the REST URL of each node, without a slash at the end."""
    qdrant = stack.spec.qdrant
    host = f"[{qdrant.host}]" if ":" in qdrant.host else qdrant.host
    urls = qdrant.nodes or (f"{'https' if qdrant.tls else 'http'}://{host}:{qdrant.port}",)
    return tuple(url.rstrip("/") for url in urls)


def _ask_qdrant(stack: Stack, clients: HttpClients, url: str) -> Question:
    async def ask(stage: Stage) -> ProbeVerdict:
        qdrant = stack.spec.qdrant
        http = clients.of(qdrant.ca_file)
        key = await _resolved(qdrant.api_key)
        headers = {"api-key": key} if key is not None else {}
        ready = await http.get(f"{url}/readyz", stage)
        reply = await http.get(f"{url}/cluster", stage, headers)
        return judge_qdrant(ready.status, _result_of(reply.body) if reply.status == 200 else None)

    return ask


def _result_of(body: bytes) -> dict[str, object] | None:
    try:
        result = read_json(body)["result"]
    except (ValueError, KeyError, TypeError):
        return None
    return result if isinstance(result, dict) else None


def _ask_store(stack: Stack, clients: HttpClients) -> Question:
    # one key for each prober: two of them must not delete each other's object between put and get
    place = sha256(str(stack.state_dir).encode()).hexdigest()[:8]
    key = f"{STORE_PREFIX}{_host_segment()}-{place}.json"

    async def ask(stage: Stage) -> ProbeVerdict:
        from synapse_ops.systems.s3.probe import round_trip

        access = await asyncio.to_thread(stack.store_access)
        written = {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat()}
        http = clients.of(str(access.ca_file) if access.ca_file else None)
        url = stack.spec.backup.database.destination
        trip = await round_trip(http, url, access, key, json.dumps(written).encode(), stage)
        return judge_store(trip.clock_skew_s)

    return ask


async def _resolved(secret: SecretRef | None) -> str | None:
    """Return a secret, read beside the event loop: a file may take its time."""
    return None if secret is None else await asyncio.to_thread(secret.resolve)


def _host_segment() -> str:
    name = socket.gethostname().split(".")[0]
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name)[:60] or "host"


def _ask_certificates(stack: Stack) -> Question:
    async def ask(stage: Stage) -> ProbeVerdict:
        from synapse_ops.systems.certificates import days_left_of_file

        file = stack.spec.tls.cert_file
        stage.words = f"reading {file}"
        days: dict[str, float | str] = {}
        try:
            days[file] = await asyncio.to_thread(days_left_of_file, Path(file), datetime.now(UTC))
        except SynapseOpsError as fault:
            days[file] = fault.message
        stage.words = "waiting for TLS handshakes"
        servers = list(_tls_servers(stack))
        timeout_s = 0.8 * stack.spec.watch.timeout.total_seconds()
        shown = await asyncio.gather(*(_shown_days(*server[1:], timeout_s) for server in servers))
        days.update({server[0]: left for server, left in zip(servers, shown, strict=True) if left is not None})
        return judge_certificates(days)

    return ask


def _tls_servers(stack: Stack) -> Iterator[tuple[str, str, int, bool]]:
    """Yield name, host, port and whether it is PostgreSQL, of every server of the spec that may speak TLS."""
    for node in stack.spec.failover.nodes if "nodes" in stack.spec.watch.servers else ():
        host, _, port = node_address(stack, node).rpartition(":")
        if not host.startswith("/"):
            yield node, host.strip("[]"), int(port), True
    store = stack.spec.object_store.endpoint
    urls = [("object-store", store)] if store is not None and "object_store" in stack.spec.watch.servers else []
    urls += [(url, url) for url in qdrant_urls(stack) if "qdrant" in stack.spec.watch.servers]
    for name, url in urls:
        parts = urlsplit(url)
        if parts.scheme == "https" and parts.hostname:
            yield name, parts.hostname, parts.port or 443, False


async def _shown_days(host: str, port: int, is_postgres: bool, timeout_s: float) -> float | None:
    """Return the days left of a server's certificate; None when it shows none, or does not answer."""
    from synapse_ops.systems.certificates import days_left_of_server

    try:
        async with asyncio.timeout(timeout_s):
            return await days_left_of_server(host, port, is_postgres=is_postgres)
    except (TimeoutError, SynapseOpsError):
        return None


def _ask_disk(stack: Stack) -> Question:
    async def ask(stage: Stage) -> ProbeVerdict:
        stage.words = "asking the file systems"
        cleanup = stack.spec.cleanup
        paths = [stack.state_dir, *map(Path, (*cleanup.log_roots, *cleanup.temp_roots))]
        return judge_disks(await asyncio.to_thread(_disks, paths))  # a file system of a dead server blocks for ever

    return ask


def _disks(paths: list[Path]) -> list[DiskUse]:
    found: dict[int, DiskUse] = {}
    for path in paths:
        try:
            device, status = path.stat().st_dev, os.statvfs(path)
        except FileNotFoundError:
            continue
        inodes = status.f_favail / status.f_files if status.f_files else None
        use = DiskUse(str(path), status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, inodes)
        found.setdefault(device, use)
    return list(found.values())
