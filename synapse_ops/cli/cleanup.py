"""`synapse-ops cleanup`: plan a cleanup, then apply exactly one of its plans by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.tables import format_bytes, show_table
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import SynapseOpsError
from synapse_ops.systems.host.errors import host_errors

if TYPE_CHECKING:
    from synapse_ops.domain.progress import ReportProgress
    from synapse_ops.operations.cleanup.plan_file import Outcome, StoredPlan

KINDS = ("logs", "temp", "cache", "snapshots", "history")


@click.command(
    epilog="Examples:  synapse-ops cleanup --plan   |   synapse-ops cleanup --plan --only logs   |   "
    "synapse-ops cleanup --apply 3f9a1c0d5e6f7a8b"
)
@click.option(
    "--plan",
    "wants_plan",
    is_flag=True,
    help="Print what would be removed and why, and a digest for each kind. The default.",
)
@click.option("--apply", "digests", metavar="DIGEST", multiple=True, help="Apply exactly the plan with this digest.")
@click.option("--only", type=click.Choice(KINDS), multiple=True, help="With --plan: only this kind. Default: all.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document (docs/json/cleanup-plan.schema.json, cleanup-apply.schema.json).",
)
@stack_options
def command(*, wants_plan: bool, digests: tuple[str, ...], only: tuple[str, ...], as_json: bool, place: Place) -> None:
    """Plan and apply the cleanup of log files, temporary files, idle cache keys, left-over snapshots on Qdrant's nodes
    and Dagster's own history.

    A plan changes nothing. Applying checks every entry again and skips an entry that changed since the plan.
    A plan is refused when it is older than 24 hours or was applied. One kind that cannot be planned does not keep the
    others from being planned; the exit code is then that error's.
    """
    if wants_plan and digests:
        raise click.UsageError("--plan and --apply are mutually exclusive")
    if digests and only:
        raise click.UsageError("--only goes with --plan; a digest already names its kind")
    if not digests:
        _plan(place, only or KINDS, as_json=as_json)
    else:
        _apply(place, digests, as_json=as_json)


def _plan(place: Place, kinds: tuple[str, ...], *, as_json: bool) -> None:
    from synapse_ops.cli.progress_bar import progress_bar

    place.stack()  # reports the faults of the spec once
    bodies: list[dict[str, Any]] = []
    first_error: SynapseOpsError | None = None
    for kind in kinds:
        try:
            with host_errors(place.state_dir), progress_bar() as progress, _verbs(place, kind) as (make, _):
                plan = make(progress)
        except SynapseOpsError as error:
            first_error = first_error or error
            bodies.append({"kind": kind, "error": {"code": error.code, "message": error.message, "hint": error.hint}})
            if not as_json and error is not first_error:
                echo(error.render(), err=True)
            continue
        bodies.append(_plan_data(plan))
        if not as_json:
            _show_plan(plan)
    if as_json:
        print_json({"plans": bodies})
    if first_error is not None:
        raise first_error


def _apply(place: Place, digests: tuple[str, ...], *, as_json: bool) -> None:
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.cleanup.plan_file import find_kind

    bodies = []
    for digest in digests:
        kind = find_kind(place.state_dir.absolute(), digest)
        with progress_bar() as progress, _verbs(place, kind) as (_, apply):
            outcome = apply(digest, progress)
        bodies.append({"kind": kind, "digest": digest, **outcome.as_json()})
        if not as_json:
            _show_outcome(kind, digest, outcome)
    if as_json:
        print_json({"applied": bodies})


Verbs = tuple[Callable[["ReportProgress"], "StoredPlan"], Callable[[str, "ReportProgress"], "Outcome"]]


@contextmanager
def _verbs(place: Place, kind: str) -> Iterator[Verbs]:
    """Yield how a plan of one kind is made, and how it is applied."""
    stack = place.stack()
    spec, state_dir, now = stack.spec, stack.state_dir, datetime.now(UTC)
    if kind == "cache":
        from synapse_ops.operations.cleanup.cache import apply_cache_plan, make_cache_plan

        yield (
            lambda progress: make_cache_plan(spec, state_dir, now, progress=progress),
            lambda digest, progress: apply_cache_plan(digest, spec, state_dir, now, progress=progress),
        )
    elif kind == "snapshots":
        from synapse_ops.operations.cleanup.node_snapshots import apply_snapshots_plan, make_snapshots_plan

        yield (
            lambda progress: make_snapshots_plan(stack, state_dir, now, progress=progress),
            lambda digest, progress: apply_snapshots_plan(digest, stack, state_dir, now, progress=progress),
        )
    elif kind == "history":
        from synapse_ops.operations.cleanup.run_history import apply_history_plan, make_history_plan
        from synapse_ops.services.dagster.home import dagster_environment, prepare_home
        from synapse_ops.services.dagster.service import dagster_instance

        home = prepare_home(state_dir, place.found_spec())
        with dagster_instance(dagster_environment(home, code_port=0)) as instance:
            yield (
                lambda progress: make_history_plan(stack, instance, now, progress=progress),
                lambda digest, progress: apply_history_plan(digest, stack, instance, now, progress=progress),
            )
    else:
        from synapse_ops.operations.cleanup.files import apply_cleanup, make_cleanup_plan

        yield (
            lambda progress: make_cleanup_plan(kind, spec, state_dir, now, progress=progress),
            lambda digest, progress: apply_cleanup(kind, digest, spec, state_dir, now, progress=progress),
        )


def _plan_data(plan: StoredPlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "digest": plan.digest,
        "made_at": plan.made_at.isoformat(),
        "policy": plan.policy,
        "totals": plan.totals,
        "warnings": plan.warnings,
        "path": str(plan.path),
        "first_rows": plan.first_rows,
    }


def _show_plan(plan: StoredPlan) -> None:
    from synapse_ops.operations.cleanup.plan_file import subject_of

    rows = [(row["action"], subject_of(row, plan.policy), _size(row), row["reason"]) for row in plan.first_rows]
    if rows:
        show_table(("action", "what", ">size", "because"), rows, title=plan.kind)
    echo(f"{plan.kind}: " + ", ".join(_words(plan.totals)))
    for warning in plan.warnings:
        echo(f"warning: {warning}", err=True)
    echo(f"  plan {plan.digest}, whole in {plan.path}")
    acts = any(row["action"] != "keep" for row in plan.first_rows)  # what a plan does stands before what it keeps
    echo(f"  apply it with: synapse-ops cleanup --apply {plan.digest}\n" if acts else "  nothing to apply\n")


def _show_outcome(kind: str, digest: str, outcome: Outcome) -> None:
    from synapse_ops.operations.cleanup.plan_file import subject_of

    rows = [(row["action"], subject_of(row, {}), row["skipped_because"]) for row in outcome.rows]
    if rows:
        show_table(("action", "left alone", "because"), rows, title=f"{kind}: changed since the plan")
    done = ", ".join(f"{action} {count:,}" for action, count in sorted(outcome.done.items())) or "nothing"
    echo(
        f"{kind}: plan {digest} applied: {done}; freed {format_bytes(outcome.freed_bytes)}; "
        f"left alone {outcome.skipped:,}"
    )


def _words(totals: Mapping[str, Any]) -> Iterator[str]:
    for name, value in totals.items():
        if isinstance(value, int):
            words = name.replace("_", " ")
            yield (
                f"{words.removesuffix(' bytes')} {format_bytes(value)}"
                if name.endswith("_bytes")
                else f"{words} {value:,}"
            )


def _size(row: Mapping[str, Any]) -> str:
    return format_bytes(row["size_bytes"]) if "size_bytes" in row else ""
