"""`synapse-ops local up|down|status|reset|logs`: the embedded stack of real servers."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import click

from synapse_ops.cli.options import state_dir_option
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.domain.progress import Progress
from synapse_ops.errors import ConfigError, Refused, Unreachable

FOLLOW_POLL_S = 0.2

_state_dir = state_dir_option("Where the stack keeps its data, logs, secrets and spec.")


@click.group()
def command() -> None:
    """Start, stop and inspect the embedded stack.

    PostgreSQL 17 primary with a streaming standby, Redis, an S3 store, a third PostgreSQL for Dagster's own storage and
    a small application: real servers on free loopback ports, with data in one directory.

    \b
    Examples:
      synapse-ops local up
      synapse-ops local status --json
      synapse-ops local logs db-primary --follow
      synapse-ops local down
    """


def _show(step: Progress) -> None:
    echo(step.stage, err=True)


@command.command()
@_state_dir
def up(state_dir: Path) -> None:
    """Start every server that is not running. The stack runs until `synapse-ops local down`."""
    from synapse_ops.local.embedded_stack import start_stack

    began = time.monotonic()
    stack = start_stack(state_dir, progress=_show)
    echo(f"the embedded stack is up after {time.monotonic() - began:.1f} s", err=True)
    for server in stack.state.servers.values():
        if server.state == "fenced":
            echo(f"{server.name} is fenced by incident {server.detail} and was not started: docs/failover.md", err=True)
    echo(f"spec: {_short(stack.spec_path)}", err=True)
    if stack.state.owner is not None:
        owner = f"`synapse-ops ui` or `demo` (pid {stack.state.owner.pid})"
        echo(f"they were started by {owner} and end with it; run `local up` again then", err=True)


@command.command()
@_state_dir
def down(state_dir: Path) -> None:
    """Stop every server in order; the data stays."""
    from synapse_ops.local.embedded_stack import stop_stack

    stopped = stop_stack(state_dir, progress=_show)
    echo("the embedded stack is down" if stopped else "nothing was running", err=True)


@command.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def status(state_dir: Path, *, as_json: bool) -> None:
    """Show the current state of every server. Exit code 12 when one that was started no longer runs."""
    from synapse_ops.local.embedded_stack import is_lost, stack_status
    from synapse_ops.local.layout import find_layout

    state = stack_status(state_dir)
    if as_json:
        print_json({"format": 1, **asdict(state)})
    elif not state.servers:
        echo("the embedded stack was never started here; start it with: synapse-ops local up")
    else:
        for server in state.servers.values():
            pid = f"pid {server.pid}" if server.pid is not None else ""
            echo(f"{server.name:12} {server.state:8} {server.address:32} {pid} {server.detail}".rstrip())
    ended = [server.name for server in state.servers.values() if server.state == "ended"]
    if ended:
        raise Unreachable(
            f"not running although it was started: {', '.join(ended)}",
            hint="The data of PostgreSQL is gone: `synapse-ops recover` looks what can be brought back."
            if is_lost(find_layout(state_dir))
            else "Start it again: synapse-ops local up",
        )


@command.command()
@_state_dir
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def reset(state_dir: Path, *, yes: bool) -> None:
    """Stop the stack and remove all its data, backups in its own S3 store included."""
    from synapse_ops.local.embedded_stack import reset_stack, resettable
    from synapse_ops.local.layout import find_layout

    there = [path for path in resettable(find_layout(state_dir)) if path.exists()]
    if not there:
        echo("nothing to remove", err=True)
        return
    if not yes:
        for path in there:
            echo(f"  {_short(path)}", err=True)
        _confirm("Remove these, with every backup in the embedded store?")
    for path in reset_stack(state_dir, progress=_show):
        echo(f"removed {_short(path)}", err=True)


def _confirm(question: str) -> None:
    """Ask the operator. Raises Refused for a no, ConfigError without a terminal to ask on."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C
        echo(err=True)  # the question ended without a line feed
        raise ConfigError("cannot ask for confirmation: there is no terminal", hint="Confirm with --yes.") from None
    if not agreed:
        raise Refused("nothing was removed: the answer was no")


@command.command()
@click.argument("server", required=False)
@_state_dir
@click.option("--lines", default=50, show_default=True, type=click.IntRange(0), help="Number of last lines to print.")
@click.option("--follow", is_flag=True, help="Keep printing new lines until interrupted.")
def logs(server: str | None, state_dir: Path, lines: int, *, follow: bool) -> None:
    """Print the end of a server's log; without SERVER, of every log."""
    from synapse_ops.local.layout import find_layout

    folder = find_layout(state_dir).logs
    known = {path.stem: path for path in sorted(folder.glob("*.log"))} if folder.is_dir() else {}
    if server is not None and server not in known:
        raise ConfigError(
            f'there is no log of a server "{server}"',
            detail=f"known: {', '.join(known) or 'none; nothing was started'}",
        )
    chosen = known if server is None else {server: known[server]}
    offsets = {}
    for name, path in chosen.items():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in deque(file, maxlen=lines):
                echo(_labelled(name, line, alone=server is not None))
            offsets[name] = file.tell()
    while follow:
        time.sleep(FOLLOW_POLL_S)
        for name, path in chosen.items():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(offsets[name] if path.stat().st_size >= offsets[name] else 0)
                for line in file:
                    echo(_labelled(name, line, alone=server is not None))
                offsets[name] = file.tell()


def _labelled(name: str, line: str, *, alone: bool) -> str:
    line = click.unstyle(line.rstrip())  # a log may be coloured
    return line if alone else f"{name:12} {line}"


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
