"""Whether failover is armed is an entry of health: it says why not, and exists only where we fail over."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from synapse_ops.domain.health.states import ProbeVerdict, State, initial_condition
from synapse_ops.operations.failover.armed import NAME
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.failover.status import PULSE_S, WATCH_FILE, read_status, write_watch
from synapse_ops.operations.health.asker import Asker
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.operations.stack_probes import stack_probes
from synapse_ops.services.prober.families import families
from synapse_ops.services.prober.prober import Prober, Watched
from synapse_ops.systems.probe_clients import HttpClients

ARMED: dict[str, Any] = {"state": "healthy", "primary": "db-primary", "standby": "db-standby", "unarmed": ""}


def stack_of(folder: Path, more: str = "") -> Stack:
    spec = folder / "infrastructure.yaml"
    spec.write_text(f"watch: {{timeout: 1s, interval: 1s}}\n{more}\n")
    return open_stack(spec, folder)


def names(stack: Stack, *, is_embedded: bool = True) -> set[str]:
    return {probe.name for probe in stack_probes(stack, HttpClients(), is_embedded=is_embedded)}


def ask(stack: Stack) -> ProbeVerdict:
    [probe] = [one for one in stack_probes(stack, HttpClients(), is_embedded=True) if one.name == NAME]
    return asyncio.run(Asker(probe).ask())


def test_the_entry_is_there_only_where_we_fail_over_by_ourselves(tmp_path: Path) -> None:
    """A container or another host has no authority over the nodes: an entry there would be degraded for ever."""
    assert NAME in names(stack_of(tmp_path))
    assert NAME not in names(stack_of(tmp_path), is_embedded=False)
    for elsewhere in (
        "failover: {standby: null}",
        "failover: {manager: external}",
        "failover: {automatic: false}",
        "watch: {servers: [nodes]}",
    ):
        folder = tmp_path / "other"
        folder.mkdir(exist_ok=True)
        (folder / "infrastructure.yaml").write_text(elsewhere)
        assert NAME not in names(open_stack(folder / "infrastructure.yaml", folder)), elsewhere


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, State.HEALTHY),
        ({"unarmed": "db-standby does not stream from db-primary"}, State.DEGRADED),
        ({"state": "suspect", "refused": "the standby is 9 bytes behind"}, State.FAILED),
    ],
)
def test_the_reason_of_the_entry_is_the_first_line_of_the_status(
    tmp_path: Path, found: dict[str, str], state: State
) -> None:
    stack = stack_of(tmp_path)
    write_watch(tmp_path, {**ARMED, **found})
    verdict = ask(stack)
    assert verdict.state is state
    sentence = read_status(tmp_path, datetime.now(UTC)).sentence
    assert verdict.reason == ("" if state is State.HEALTHY else sentence)
    assert verdict.measurements == {"armed": float(state is State.HEALTHY)}


def test_a_watcher_that_is_silent_or_never_spoke_is_not_armed(tmp_path: Path) -> None:
    stack = stack_of(tmp_path)
    assert "no watcher looks at the nodes" in ask(stack).reason
    said_at = datetime.now(UTC) - timedelta(seconds=10 * PULSE_S)
    folder = Ledger.of(tmp_path).folder
    folder.mkdir()
    (folder / WATCH_FILE).write_text(json.dumps({**ARMED, "at": said_at.isoformat()}))
    verdict = ask(stack)
    assert verdict.state is State.DEGRADED
    assert "the watcher has said nothing for" in verdict.reason


def test_what_arms_within_the_question_was_never_unarmed(tmp_path: Path) -> None:
    """A start and a rejoin pass through it; the first verdict of a prober counts at once."""
    stack = stack_of(tmp_path)
    write_watch(tmp_path, {**ARMED, "unarmed": "the store has not been asked yet"})
    [probe] = [one for one in stack_probes(stack, HttpClients(), is_embedded=True) if one.name == NAME]

    async def arm_meanwhile() -> ProbeVerdict:
        asking = asyncio.ensure_future(Asker(probe).ask())
        await asyncio.sleep(0.1)
        write_watch(tmp_path, ARMED)
        return await asking

    assert asyncio.run(arm_meanwhile()).state is State.HEALTHY


def test_the_metric_says_armed(tmp_path: Path) -> None:
    """1 or 0 by the last verdict."""
    stack = stack_of(tmp_path)
    write_watch(tmp_path, ARMED)

    async def told() -> dict[str, list[float]]:
        prober = Prober(tmp_path / "infrastructure.yaml", tmp_path, is_embedded=True)
        [probe] = [one for one in stack_probes(stack, HttpClients(), is_embedded=True) if one.name == NAME]
        verdict = await Asker(probe).ask()
        prober.watched = {NAME: Watched(probe, initial_condition(datetime.now(UTC)), verdict, datetime.now(UTC))}
        return {family.name: [sample.value for sample in family.samples] for family in families(prober)}

    assert asyncio.run(told())["synapse_ops_failover_armed"] == [1.0]
