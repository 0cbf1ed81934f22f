"""Where `synapse-ops` begins. `wal push` and `wal fetch` ask the process that stays up; all else is the command line.

A server calls these two for each segment of WAL, so nothing is imported for them but what a socket needs.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command line and exit with its code."""
    if sys.argv[1:2] == ["wal"] and sys.argv[2:3] in (["push"], ["fetch"]):
        from synapse_ops.cli.wal_client import ask

        code = ask(sys.argv[2], sys.argv[3:])
        if code is not None:
            sys.exit(code)
    from synapse_ops.cli.main import main as command_line

    command_line()
