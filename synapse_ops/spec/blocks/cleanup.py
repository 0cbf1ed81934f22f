"""What is cleaned up, and where: `cleanup`."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from synapse_ops.spec.block import AbsolutePath, Block, Retention, Schedule, Text
from synapse_ops.spec.cron import Cron


class LogCleanup(Block):
    """Log files below `log_roots`."""

    retention: Retention = Field(timedelta(days=30), description="Age at which a log file is removed.")
    compress: bool = Field(True, description="Whether log files that are no longer written are compressed.")
    compress_after: Retention = Field(timedelta(days=1), description="Age at which a log file is compressed.")


class TempCleanup(Block):
    """Temporary files below `temp_roots`."""

    retention: Retention = Field(timedelta(days=7), description="Age at which a temporary file is removed.")


class CacheCleanup(Block):
    """Redis keys that match `cache_patterns`."""

    retention: Retention = Field(timedelta(days=1), description="Idle time after which a cached key is removed.")


class RunHistoryCleanup(Block):
    """Dagster's own history. The newest event of each asset, partition and check stays, whatever its age."""

    runs: Retention = Field(timedelta(days=90), description="Age at which a finished run and its events are removed.")
    ticks: Retention = Field(timedelta(days=30), description="Age at which ticks of schedules and sensors are removed.")
    events: Retention = Field(timedelta(days=90), description="Age at which events outside of runs are removed.")
    compute_logs: Retention = Field(timedelta(days=30), description="Age at which the output of a run is removed.")


class Cleanup(Block):
    """What is cleaned up, and where. Nothing outside the roots and patterns listed here is ever touched."""

    logs: LogCleanup = LogCleanup()
    temp: TempCleanup = TempCleanup()
    cache: CacheCleanup = CacheCleanup()
    run_history: RunHistoryCleanup = RunHistoryCleanup()
    schedule: Schedule = Field(Cron("0 3 * * *"), description="When all of it is planned and applied, in `time_zone`.")
    log_roots: tuple[AbsolutePath, ...] = Field((), description="Directories that hold only log files of this stack.")
    temp_roots: tuple[AbsolutePath, ...] = Field((), description="Directories that hold only its temporary files.")
    cache_patterns: tuple[Text, ...] = Field(("cache:*",), description="Patterns of Redis keys that are cache only.")
