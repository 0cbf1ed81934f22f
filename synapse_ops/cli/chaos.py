"""`synapse-ops chaos`: faults for the embedded stack, to see what happens. Nothing here touches another server."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from synapse_ops.cli.options import state_dir_option
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import counted

_state_dir = state_dir_option("State directory of the embedded stack.")


@click.group()
def command() -> None:
    """Break the embedded stack on purpose. Refused where no such stack runs.

    \b
    Examples:
      synapse-ops chaos kill-primary
      synapse-ops chaos freeze-primary
    """


def _signal(state_dir: Path, number: signal.Signals, *, only_postmaster: bool = False) -> None:
    from synapse_ops.local.failover_place import primary_processes

    name, marks = primary_processes(state_dir)
    hit = sum(mark.signal(number) for mark in (marks[:1] if only_postmaster else marks))
    echo(f"{number.name} to {counted(hit, 'process')} of {name}")
    echo("what follows: synapse-ops failover status")


@command.command("kill-primary")
@_state_dir
def kill_primary(state_dir: Path) -> None:
    """kill -9 of every process of the node that takes writes."""
    _signal(state_dir, signal.SIGKILL)


@command.command("kill-postmaster-only")
@_state_dir
def kill_postmaster_only(state_dir: Path) -> None:
    """kill -9 of its postmaster alone: backends at work go on for a while, and commit."""
    _signal(state_dir, signal.SIGKILL, only_postmaster=True)


@command.command("freeze-primary")
@_state_dir
def freeze_primary(state_dir: Path) -> None:
    """SIGSTOP of every process of it: it neither answers nor refuses."""
    _signal(state_dir, signal.SIGSTOP)


@command.command("lose-everything")
@_state_dir
def lose_everything(state_dir: Path) -> None:
    """Kill PostgreSQL, Redis, Qdrant, the API, the prober and the WAL receiver, and remove their data directories.

    The bucket is left, and so is Dagster's own PostgreSQL. `synapse-ops recover` brings the rest back.
    """
    from synapse_ops.local.lose_everything import lose

    for line in lose(state_dir):
        echo(line)
    echo("what follows: synapse-ops recover")
