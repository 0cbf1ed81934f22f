"""`steer_failover`: what a person may ask of the watcher, as one job; and a switchover by schedule, where asked for."""

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import PRIORITY_RESTORE, TAG_TRIGGER, run_tags
from synapse_ops.defs.resources import StackResource

if TYPE_CHECKING:
    from synapse_ops.domain.failover.incident import Entry
    from synapse_ops.spec import Spec

LIMIT = timedelta(minutes=15)


ACTIONS = ("switch_over", "fail_over", "rejoin", "pause", "resume")
Action: Any = Enum("Action", [(name, name) for name in ACTIONS])  # type: ignore[misc]


class SteerConfig(dg.Config):
    """What the watcher is asked to do."""

    action: Action = Field(
        description="switch_over: the standby takes writes, on purpose and without loss. fail_over: go on with a "
        "failover that was refused. rejoin: bring the old primary back, after that failed. pause, resume: of automatic "
        "failover."
    )
    accept_loss: str = Field(
        "", description="Of fail_over: WAL that may be lost, such as 16MiB. Empty: failover.max_lag_bytes of the spec."
    )
    end_sessions: bool = Field(
        False, description="Of switch_over: end transactions and base backups that are older than 10 s."
    )
    pause_for: str = Field("1h", description="Of pause: how long, such as 30m; at most 7d. It ends by itself.")
    reason: str = Field("", description="Of pause: why; the page shows it.")


def steering_definitions(spec: "Spec") -> dg.Definitions:
    """Return the job, and the schedule of `drills.switchover` where there is one."""
    job = _job()
    cron = spec.drills.switchover
    return dg.Definitions(jobs=[job], schedules=[_schedule(job, str(cron), spec)] if cron is not None else [])


def _job() -> dg.JobDefinition:
    @dg.op(name="ask_the_watcher", out=dg.Out(dg.Nothing))
    def ask(context: dg.OpExecutionContext, config: SteerConfig, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            context.log.info(_steer(config, stack, context.log))

    @dg.job(
        description="Ask the watcher for a switchover, a failover that it refused, a rejoin, a pause or its end. It is "
        "refused, with the reason, where that cannot be; failover_record shows what follows.",
        tags=run_tags(LIMIT, priority=PRIORITY_RESTORE),
    )
    def steer_failover() -> None:
        ask()

    return steer_failover


def _steer(config: SteerConfig, stack: StackResource, log: dg.DagsterLogManager) -> str:
    """Do it, and return what became of it."""
    from synapse_ops.errors import ConfigError
    from synapse_ops.operations.failover import steering
    from synapse_ops.spec.units import parse_duration, parse_size

    folder, now = stack.open().state_dir, datetime.now(UTC)

    def tell(entry: "Entry") -> None:
        log.info(f"{(entry.at - now).total_seconds():.2f} s: {entry.state}")

    try:
        loss = parse_size(config.accept_loss) if config.accept_loss else None
        span = parse_duration(config.pause_for, bare_unit="m")
    except ValueError as fault:
        raise ConfigError(f'accept_loss "{config.accept_loss}" or pause_for "{config.pause_for}": {fault}') from None
    match config.action.value:
        case "switch_over":
            incident, back = steering.switch_over(folder, end_sessions=config.end_sessions, now=now, tell=tell)
            facts = incident.facts
            return f"{facts['new']} takes writes; {facts['old']} follows it ({back['how']} in {back['seconds']} s)"
        case "fail_over":
            facts = steering.fail_over(folder, loss, now, tell).facts
            return f"{facts['new']} takes writes; lost: {facts['lost_commits']} commits"
        case "rejoin":
            return f"the watcher rejoins {steering.rejoin(folder)}"
        case "pause":
            if not config.reason:
                raise ConfigError("a pause needs a reason", hint="Say why: the page shows it.")
            return f"failover is paused until {steering.pause(folder, span, config.reason, now):%Y-%m-%d %H:%M:%S} UTC"
        case "resume":
            steering.resume(folder)
            return "failover is not paused"
        case other:
            raise ConfigError(f'"{other}" is no action', detail=f"allowed: {', '.join(ACTIONS)}")


def _schedule(job: dg.JobDefinition, cron: str, spec: "Spec") -> dg.ScheduleDefinition:
    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        config = {"ops": {"ask_the_watcher": {"config": {"action": "switch_over"}}}}
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, run_config=config, tags={TAG_TRIGGER: "schedule"})

    return dg.ScheduleDefinition(
        name="switchover_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Exchange the roles of primary and standby, at {cron} in {spec.time_zone}: this system's drill.",
    )
