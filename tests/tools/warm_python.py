"""A Python that has imported what takes seconds, and forks for each program that it is asked to run.

    PYTHON warm_python.py serve SOCKET MODULE     imports the module, then serves until its standard input ends
    python warm_python.py run SOCKET PROGRAM ...  runs a Python program there: its words and its status are the caller's

checkov imports for four seconds and then judges in one. A fork has the imports and shares nothing else, so that each
run starts as a fresh process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

_CHECKOV = "import sys; from checkov.main import Checkov; sys.exit(Checkov(sys.argv[1:]).run())"
CRASHED = 70  # no tool that we ask ends with it
_LONGEST_S = 300  # a run whose caller was killed ends by itself


def run(address: str, argv: list[str]) -> int:
    """Have the server run a program with our directory, environment and streams; return its status."""
    request = json.dumps({"argv": argv, "directory": os.getcwd(), "environment": dict(os.environ)})  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [request.encode()], [1, 2])
        status = connection.recv(1)
    return status[0] if status else CRASHED


def serve(address: str, module: str) -> None:
    """Fork for each request, until nobody holds the other end of standard input."""
    __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(f"{address}.new")
        listener.listen()
        Path(f"{address}.new").rename(address)  # who sees it may connect
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Become the program that is asked for; never returns."""
    status = CRASHED
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(_LONGEST_S)
        words, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        for stream, own in zip(streams, (1, 2), strict=True):
            os.dup2(stream, own)
        request = json.loads(words)
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["environment"])
        status = _status_of(request["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        connection.sendall(bytes([status]))
        os._exit(0)


def _status_of(argv: list[str]) -> int:
    try:
        if argv[0] == "-c":
            sys.argv = ["-c", *argv[2:]]
            exec(argv[1], {"__name__": "__main__"})
        else:
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:  # noqa: BLE001 - it ends this process, as it would have ended the program's own
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def warmed(scratch: Path) -> Iterator[None]:
    """Put checkov and the Kubernetes models, where installed, on PATH as programs that run in a warm Python."""
    before = os.environ["PATH"]
    with contextlib.ExitStack() as stack:
        checkov, models = shutil.which("checkov"), shutil.which("kubernetes-models-python")
        if checkov:
            python = str(Path(checkov).resolve().with_name("python"))
            # its own script would take the arguments that stood there when it was imported
            stack.enter_context(shim(scratch, "checkov", python, "checkov.main", "-c", _CHECKOV))
        if models:
            stack.enter_context(shim(scratch, "kubernetes-models-python", models, "kubernetes.client"))
        os.environ["PATH"] = f"{scratch}:{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before


@contextlib.contextmanager
def shim(scratch: Path, name: str, python: str, module: str, *first: str) -> Iterator[None]:
    """Write a program into a directory that runs with `first` before its arguments, in a fork of a Python."""
    with tempfile.TemporaryDirectory(prefix="warm-") as short:  # the path of a socket has at most 107 bytes
        address = Path(short) / "socket"
        server = subprocess.Popen(
            [python, __file__, "serve", str(address), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        try:
            while not address.exists() and server.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.1)
            assert server.poll() is None, f"{python} with {module} does not start"
            argv = [sys.executable, "-IS", __file__, "run", str(address), *first]
            (scratch / name).write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n', encoding="utf-8")
            (scratch / name).chmod(0o755)
            yield
        finally:
            server.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(run(sys.argv[2], sys.argv[3:]))
