"""`health --watch` on a real terminal: it draws, and Ctrl-C gives the terminal back."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.misbehaving import misbehaving

DRAWN_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0
STACK_TIMEOUT_S = 5.0


def read_until(terminal: int, process: subprocess.Popen[bytes], words: bytes | None, timeout_s: float) -> bytes:
    """Return what the terminal showed until some words, or until its program let go of it.

    A program that is late is made to say where it stands.
    """
    seen, deadline, is_late = b"", time.monotonic() + timeout_s, False
    while words is None or words not in seen:
        if time.monotonic() > deadline:
            assert not is_late, seen[-4000:]
            is_late, deadline = True, deadline + STACK_TIMEOUT_S
            process.send_signal(signal.SIGABRT)
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # Linux says so when the last program has closed it
                break
    assert not is_late, seen[-4000:]
    return seen


def test_watch_draws_until_control_c_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    """Exit code 130, the screen of before, the cursor shown, no traceback."""
    spec = tmp_path / "infrastructure.yaml"
    with misbehaving() as server:
        spec.write_text(f"watch: {{servers: []}}\nhealth: [{{name: api, url: '{server.url('/ok')}', timeout: 20s}}]\n")
        ours, theirs = pty.openpty()
        code = "from synapse_ops.cli.main import main; main()"
        argv = [sys.executable, "-c", code, "health", "--watch", "--state-dir", str(tmp_path), "--spec", str(spec)]
        process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40", "PYTHONFAULTHANDLER": "1"},
        )
        os.close(theirs)
        try:
            drawn = read_until(ours, process, b"1 of 1 healthy", DRAWN_TIMEOUT_S)
            os.write(ours, b"\x03")
            after = read_until(ours, process, None, END_TIMEOUT_S)
            status = process.wait(END_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            os.close(ours)

    assert status == 130
    assert b"\x1b[?1049h" in drawn
    assert b"\x1b[?1049l" in after
    assert b"\x1b[?25h" in after
    assert b"Traceback" not in after
