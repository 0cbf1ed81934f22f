"""The probe `server/failover`: whether a dead primary would be failed over now, and why not, as an entry of health."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from synapse_ops.domain.health.states import ProbeVerdict, State
from synapse_ops.operations.failover.status import FailoverStatus, read_status
from synapse_ops.operations.health.asker import SERVER, Probe
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.probe_stage import Stage

NAME = "server/failover"


def armed_probe(stack: Stack) -> Probe:
    """Return the probe. Only where the watcher of the nodes works: it would be degraded for ever elsewhere."""
    watch = stack.spec.watch
    interval_s, timeout_s = watch.interval.total_seconds(), watch.timeout.total_seconds()
    settle_s = timeout_s / 2  # a start and a rejoin pass through states that are not armed: it is asked twice

    async def ask(stage: Stage) -> ProbeVerdict:
        stage.words = "reading what the watcher of the nodes said"
        status = await asyncio.to_thread(read_status, stack.state_dir, datetime.now(UTC))
        if not status.is_armed:
            await asyncio.sleep(settle_s)
            status = await asyncio.to_thread(read_status, stack.state_dir, datetime.now(UTC))
        return judge_armed(status)

    nodes = ", ".join(stack.spec.failover.nodes)
    return Probe(NAME, SERVER, f"the watcher of {nodes}", interval_s, timeout_s, ask)


def judge_armed(status: FailoverStatus) -> ProbeVerdict:
    """Failed: an outage waits for a person. Degraded: the next one would."""
    state = State.FAILED if status.refused else State.HEALTHY if status.is_armed else State.DEGRADED
    reason = "" if status.is_armed else status.sentence
    return ProbeVerdict(state, reason, measurements={"armed": float(status.is_armed)})
