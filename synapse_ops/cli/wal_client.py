"""Hands one call of archive_command or restore_command to the resident process, over its Unix socket.

It imports nothing of ours and little of Python's, not even pathlib: it runs once for each segment of WAL. A request is
its words with NUL between them; the answer is the exit status, a space, and what is to be said on stderr.
"""

from __future__ import annotations

import os
import socket
import sys

FOLDER, SOCKET = "wal", "commands.sock"  # in the state directory
LIMIT_S = 900.0  # a segment of 1 GB on a slow store; a process that ends is noticed at once
UNREACHABLE = 12  # as errors.Unreachable
_WORDS = {"push": 1, "fetch": 2}


def ask(verb: str, arguments: list[str]) -> int | None:
    """Return the exit status; None: the command line is to do it, as a fetch where no process answers."""
    state_dir, words = os.environ.get("SYNAPSE_STATE_DIR", ".synapse"), []
    rest = iter(arguments)
    for word in rest:
        name, _, value = word.partition("=")
        if name in ("--state-dir", "--spec"):
            value = value or next(rest, "")
            state_dir = value if name == "--state-dir" else state_dir
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    if len(words) != _WORDS[verb]:
        return None
    folder = f"{state_dir}/{FOLDER}"
    try:
        answer = _exchange(folder, "\0".join((verb, os.getcwd(), *words)))  # noqa: PTH109 - the import takes 8 ms
    except OSError as error:
        answer, fault = "", error.strerror or str(error)
    else:
        fault = "it ended while it was asked"
    code, _, said = answer.partition(" ")
    if code.isdigit():
        if said:
            print(said, file=sys.stderr)
        return int(code)
    if verb == "fetch":
        return None
    print(f"error: no WAL receiver takes WAL at {folder}/{SOCKET}: {fault}", file=sys.stderr)
    print("hint: Start it as the user of the server, with wal_archiving: command (docs/wal.md).", file=sys.stderr)
    return UNREACHABLE


def _exchange(folder: str, request: str) -> str:
    """Send a request and return the answer, empty where the process ended. An address has at most 107 bytes."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(f"/proc/self/fd/{opened}/{SOCKET}")
            connection.sendall(os.fsencode(request))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
    finally:
        os.close(opened)
    return answer.decode("utf-8", errors="replace")
