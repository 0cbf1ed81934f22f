"""The prober as a process: `python -m synapse_ops.services.watch --spec S --state-dir D`.

    <state_dir>/watch/lock            held while it lives: one prober for each state directory
                      address.json    where it serves /metrics, removed when it ends
                      health.sqlite   its history (operations/health/history.py)

It ends at once on SIGTERM, and waits for no question: what still hangs ends with the process. When a part of it ends by
itself, it exits with status 1, so that what supervises it starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import structlog

from synapse_ops.errors import ConfigError, Refused, SynapseOpsError
from synapse_ops.services.prober.metrics import MetricsApp
from synapse_ops.services.prober.primary_watch import DatabaseWatch
from synapse_ops.services.prober.prober import Prober

USUAL_PORT = 9109  # where rendered Prometheus files look when watch.port is null (manifests/stack/parts.py)
LOCK_WAIT_S = 1.0
LOCK_POLL_S = 0.1

log = structlog.get_logger()


@contextlib.contextmanager
def only_prober(state_dir: Path, *, wait: bool) -> Iterator[IO[bytes]]:
    """Hold the state directory's lock; the kernel lets go of it however we end.

    wait: for another prober to end, however long. Otherwise raises Refused when there is one.
    """
    folder = state_dir / "watch"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        deadline_s = time.monotonic() + LOCK_WAIT_S  # a process that checks whether we run holds it for a moment
        while not _is_taken(lock):
            if not wait and time.monotonic() > deadline_s:
                raise Refused(
                    f"another prober watches for {state_dir}", hint="`synapse-ops health` shows what it finds."
                )
            time.sleep(LOCK_POLL_S)
        yield lock


def _is_taken(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def listening(address: tuple[str, int]) -> Iterator[socket.socket]:
    """Yield a socket that listens on host and port; 0 is the usual port, or a free one where that is taken.

    Raises ConfigError when a port that was named is taken.
    """
    host, port = address
    try:
        [(family, kind, protocol, _, found), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as fault:
        raise ConfigError(f"watch.host {host} is not an address of this host: {fault}") from fault
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            _bind(listener, found, usual=port == 0)
        except OSError as fault:
            raise ConfigError(
                f"could not serve metrics on {host}:{port}: {fault.strerror}",
                hint="Name another watch.port, or null for a free one.",
            ) from fault
        listener.listen(256)
        yield listener


def _bind(listener: socket.socket, found: tuple[Any, ...], *, usual: bool) -> None:
    if usual:
        with contextlib.suppress(OSError):
            return listener.bind((found[0], USUAL_PORT, *found[2:]))
    return listener.bind(found)


def write_address(state_dir: Path, listener: socket.socket) -> None:
    """Write `address.json`, whole or not at all; a disk that is full costs the file, not the prober."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    body = {"url": f"http://{shown}:{port}", "host": host, "port": port, "pid": os.getpid()}
    target = state_dir / "watch" / "address.json"
    making = target.with_suffix(".making")
    try:
        making.write_text(json.dumps(body) + "\n", encoding="utf-8")
        making.replace(target)
    except OSError as fault:
        log.warning("the address could not be written", fault=str(fault))


def _metrics_server(prober: Prober, listener: socket.socket) -> Any:
    import uvicorn

    from synapse_ops.services.prober.connections import LimitedConnection

    app = MetricsApp(prober)
    port = listener.getsockname()[1]
    names = {prober.address[0], "127.0.0.1", "localhost", "[::1]", socket.gethostname()}
    app.hosts = frozenset(f"{name}:{port}" for name in names)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        http=LimitedConnection,
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )

    class Server(uvicorn.Server):
        """Leaves signals to the prober."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(config)


async def serve(spec_path: Path, state_dir: Path) -> None:
    """Probe until SIGTERM or SIGINT. Raises the error of a part that ended by itself."""
    from synapse_ops.local.failover_place import embedded_place

    place = embedded_place(state_dir)
    prober = Prober(spec_path, state_dir, is_embedded=place is not None)
    database = DatabaseWatch(lambda: prober.stack, state_dir, place)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, prober.stop)
    with listening(prober.address) as listener:
        serving = prober.start_task(_metrics_server(prober, listener).serve(sockets=[listener]))
        write_address(state_dir, listener)
        threading.Thread(target=database.run, name="database", daemon=True).start()
        try:
            await prober.run()
        finally:
            database.stop()
            (state_dir / "watch" / "address.json").unlink(missing_ok=True)
            serving.cancel()


def raise_file_limit() -> None:
    """Take as many descriptors as the host grants: 200 probes that hang hold 200."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: list[str] | None = None) -> None:
    """Run the prober of a state directory; exit with the error's code when it cannot be one."""
    import argparse
    import sys

    from synapse_ops.systems.log_output import configure_logging

    parser = argparse.ArgumentParser(prog="synapse_ops.services.watch", description="Probe a stack until stopped.")
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--wait", action="store_true", help="Wait for another prober of the state directory to end.")
    given = parser.parse_args(arguments)
    configure_logging()
    raise_file_limit()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # our parent decides, not a terminal that closes
    state_dir = given.state_dir.absolute()
    status = 0
    try:
        with only_prober(state_dir, wait=given.wait):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(serve(given.spec.absolute(), state_dir))
    except SynapseOpsError as error:
        print(error.render(), file=sys.stderr)
        status = error.exit_code
    except Exception:
        log.exception("the prober stops: one of its tasks ended unexpectedly")
        status = 1
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs in a name's resolution would hold us for a minute; everything is written


if __name__ == "__main__":
    main()
