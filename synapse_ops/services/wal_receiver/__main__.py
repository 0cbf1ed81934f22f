"""The receiver as a process: `python -m synapse_ops.services.wal_receiver --spec S --state-dir D`.

    <state_dir>/wal/lock            held while it lives: one receiver for each state directory
                    address.json    where it serves /metrics and /health, removed when it ends
                    digest.key      its key for comparing encrypted WAL, unless --digest-key names another file
                    spool/          WAL that is not in the store yet

On SIGTERM it stores what has arrived and ends. What is wrong outside is told by `/health` and asked again every few
seconds; when a part of it ends by itself, it exits with status 1, so that what supervises it starts it again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.operations.database.wal_status import FOLDER
from synapse_ops.operations.spec_in_force import read_spec_in_force
from synapse_ops.operations.stack import Stack
from synapse_ops.services.spec_watch import SpecWatch
from synapse_ops.services.wal_receiver.metrics import serve
from synapse_ops.services.wal_receiver.receiver import Receiver
from synapse_ops.systems.log_output import configure_logging

LOCK_POLL_S = 0.1

log = structlog.get_logger()


@contextlib.contextmanager
def only_receiver(state_dir: Path, *, wait: bool) -> Iterator[None]:
    """Hold the state directory's lock. wait: for another receiver to end; otherwise raises Refused."""
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if not wait:
                raise Refused(f"another receiver of WAL works for {state_dir}")
            time.sleep(LOCK_POLL_S)
        yield


def run(spec_path: Path, state_dir: Path, port: int | None = None, digest_key: Path | None = None) -> None:
    """Receive until SIGTERM or SIGINT. port: of its metrics; None: the usual one, or a free one.

    digest_key: the file of its key, None: the state directory's own.
    """
    stack = Stack(read_spec_in_force(spec_path, state_dir).loaded, state_dir)
    spec_watch = SpecWatch(spec_path, state_dir)
    receiver = Receiver(stack, state_dir, has_new_spec=spec_watch.has_new_spec, digest_key=digest_key)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: receiver.stop())
    server = serve(receiver.standing, stack.spec.watch.host, port)
    host, port = server.server_address[:2]
    address = state_dir / FOLDER / "address.json"
    body = {"url": f"http://{host!s}:{port}", "host": str(host), "port": port, "pid": os.getpid()}
    making = address.with_suffix(".making")
    making.write_text(json.dumps(body) + "\n", encoding="utf-8")
    making.replace(address)
    try:
        while not receiver.is_stopping:
            receiver.run()  # ends by itself for a new spec
            if not receiver.is_stopping:
                receiver.use(Stack(read_spec_in_force(spec_path, state_dir).loaded, state_dir))
    finally:
        address.unlink(missing_ok=True)


def main() -> None:
    """Run the receiver of a state directory; exit with the error's code when it cannot be one."""
    parser = argparse.ArgumentParser(prog="synapse_ops.services.wal_receiver", description="Store WAL until stopped.")
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, help="Of its metrics; else 9110, or a free one.")
    parser.add_argument(
        "--digest-key", type=Path, help="File of its key for comparing encrypted WAL, 32 bytes or more."
    )
    parser.add_argument("--wait", action="store_true", help="Wait for another receiver of the state directory to end.")
    given = parser.parse_args()
    configure_logging()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # our parent decides, not a terminal that closes
    state_dir = given.state_dir.absolute()
    status = 0
    try:
        with only_receiver(state_dir, wait=given.wait):
            run(given.spec.absolute(), state_dir, given.port, given.digest_key)
    except SynapseOpsError as error:
        print(error.render(), file=sys.stderr)
        status = error.exit_code
    except Exception:
        log.exception("the receiver stops: a part of it ended unexpectedly")
        status = 1
    sys.stdout.flush()
    os._exit(status)  # a put that hangs would hold us for minutes; everything durable is written


if __name__ == "__main__":
    main()
