"""`synapse-ops failover`: who takes writes, what happens when it dies, and how a person steers that."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import state_dir_option
from synapse_ops.cli.tables import show_table
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError, Refused, SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.domain.failover.incident import Incident

_state_dir = state_dir_option("State directory of the stack; the ledger lies in failover/ below it.")


@click.group()
def command() -> None:
    """Show and steer the failover of PostgreSQL.

    The prober watches both nodes and fails over by itself while it is armed; `docs/failover.md` says how. These
    commands show the ledger, pause the watcher, and let it go on where it waits for a person.

    \b
    Examples:
      synapse-ops failover status
      synapse-ops failover pause --for 30m --reason "kernel upgrade"
      synapse-ops failover run --accept-loss 16MiB
    """


@command.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(state_dir: Path, *, as_json: bool) -> None:
    """Show whether a dead primary would be failed over, why not, and every incident.

    Exit code 17 when not armed; where another manager promotes, when not exactly one node takes writes.
    """
    from synapse_ops.errors import Unhealthy
    from synapse_ops.operations.failover.status import read_status

    found = read_status(state_dir.resolve(), datetime.now(UTC))
    if as_json:
        print_json(
            {
                "armed": found.is_armed,
                "sentence": found.sentence,
                "state": found.state,
                "primary": found.primary,
                "standby": found.standby,
                "incidents": [_incident_json(one, back) for one, back in found.incidents],
            }
        )
    else:
        echo(found.sentence)
        if found.incidents:
            show_table(
                ("incident", "kind", "from", "to", "end", ">to writes", ">lost", "old primary", "because"),
                [_row(one, back) for one, back in found.incidents],
            )
    if not found.is_in_order:
        raise click.exceptions.Exit(Unhealthy.exit_code)  # the first line said it


def _incident_json(incident: Incident, back: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "incident": incident.id,
        "kind": _kind(incident),
        "state": str(incident.state),
        "phases_s": incident.phases_s(),
        "facts": incident.facts,
        "rejoin": back,
    }


def _kind(incident: Incident) -> str:
    return "switchover" if incident.is_planned else "failover"


def _row(incident: Incident, back: dict[str, Any] | None) -> tuple[str, ...]:
    facts, phases = incident.facts, incident.phases_s()
    lost = f"{facts['lost_commits']} commits, {facts['lost_bytes']} B" if "lost_commits" in facts else "-"
    returned = f"{back['how']} in {back['seconds']} s" if back and "seconds" in back else "NOT back"
    if "promoting" not in phases:
        returned = "-"
    seconds = f"{phases['done']:.2f} s" if "done" in phases else "-"
    return (
        incident.id,
        _kind(incident),
        facts["old"],
        facts["new"],
        str(incident.state),
        seconds,
        lost,
        returned,
        facts.get("reason", ""),
    )


@command.command()
@_state_dir
@click.option("--accept-loss", help="WAL that may be lost, as `16MiB`; else failover.max_lag_bytes of the spec.")
def run(state_dir: Path, *, accept_loss: str | None) -> None:
    """Let the watcher go on with a failover that it refused. The fence must be proven all the same."""
    from synapse_ops.cli.incident_progress import shown_since
    from synapse_ops.operations.failover.steering import fail_over
    from synapse_ops.spec.units import parse_size

    try:
        accepted = parse_size(accept_loss) if accept_loss is not None else None
    except ValueError as fault:
        raise ConfigError(f'--accept-loss "{accept_loss}" is not a size', detail=str(fault)) from fault
    now = datetime.now(UTC)
    new = fail_over(state_dir.resolve(), accepted, now, shown_since(now))
    echo(f"{new.facts['new']} takes writes; lost: {new.facts['lost_commits']} commits")


@command.command()
@_state_dir
def abandon(state_dir: Path) -> None:
    """Give a promotion up whose standby does not come back: the old primary is started again, and takes writes.

    You state by this that the standby is gone: were it promoted after all, two servers would take writes. Only for an
    incident that is `promoting`.
    """
    from synapse_ops.cli.incident_progress import shown_since
    from synapse_ops.domain.failover.transitions import State
    from synapse_ops.operations.failover.ledger import Asked, Ledger, Request
    from synapse_ops.operations.failover.steering import await_end

    ledger, now = Ledger.of(state_dir.resolve()), datetime.now(UTC)
    last = next(iter(ledger.incidents()[-1:]), None)
    if last is None or last.state is not State.PROMOTING:
        at = f"the last incident is {last.state}" if last is not None else "there is no incident"
        raise Refused(f"nothing was done: {at}, and only one that is promoting can be given up")
    ledger.ask(Request(now, Asked.ABANDON))
    ended = await_end(lambda: ledger.find(last.id), shown_since(now), shown=len(last.entries))
    if ended.state is State.DONE:
        raise Refused(f"it was promoted meanwhile: {ended.facts['new']} takes writes")
    echo(f"{ended.state}: {ended.facts['reason']}")


@command.command()
@_state_dir
@click.option("--for", "span", default="1h", show_default=True, help="How long, as `30m`.")
@click.option("--reason", required=True, help="Why; shown by `failover status`.")
def pause(state_dir: Path, *, span: str, reason: str) -> None:
    """Have nothing failed over by itself for a while. It ends by itself."""
    from synapse_ops.operations.failover.steering import pause as pause_failover
    from synapse_ops.spec.units import parse_duration

    try:
        length = parse_duration(span, bare_unit="m")
    except ValueError as fault:
        raise ConfigError(f'--for "{span}" is not a duration', detail=str(fault)) from fault
    until = pause_failover(state_dir.resolve(), length, reason, datetime.now(UTC))
    echo(f"failover is paused until {until.isoformat(timespec='seconds')}")


@command.command()
@_state_dir
def resume(state_dir: Path) -> None:
    """End a pause."""
    from synapse_ops.operations.failover.steering import resume as resume_failover

    resume_failover(state_dir.resolve())
    echo("failover is not paused")


@command.command()
@_state_dir
def rejoin(state_dir: Path) -> None:
    """Have the watcher bring the old primary of the last failover back as a standby, after it could not."""
    from synapse_ops.operations.failover.steering import rejoin as rejoin_standby

    name = rejoin_standby(state_dir.resolve())
    echo(f"the watcher rejoins {name}; `synapse-ops failover status` shows when it is back")


@command.command("fence-here")
@_state_dir
@click.option("--incident", required=True, help="Id of the incident, written into the marker.")
@click.option("--node", required=True, help="Name of the node on this host.")
@click.option("--timeline", required=True, type=click.IntRange(min=1), help="Timeline that the incident ends.")
def fence_here(state_dir: Path, *, incident: str, node: str, timeline: int) -> None:
    """End a node's server on this host for good, and print what is left of it as JSON.

    The marker forbids its start as a primary until it is rejoined. Refused for another timeline or incident.
    """
    from synapse_ops.local.failover_place import embedded_place

    place = embedded_place(state_dir.resolve())
    if place is None or node not in place.controls:
        raise ConfigError(f'no node "{node}" is on this host', hint="`synapse-ops local status` lists the servers.")
    control = place.controls[node]
    cause = control.fence(incident, timeline, control.living())
    print_json({**asdict(cause), "fault": cause.fault(incident) or None})
    if cause.fault(incident):
        raise SynapseOpsError(f"the fence is not proven: {cause.fault(incident)}")
