"""What is tidied away, and where: `cleanup`."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from synapse_ops.spec.block import AbsolutePath, Block, Retention, Text


class LogCleanup(Block):
    """Log files below `log_roots`."""

    retention: Retention = Field(timedelta(days=30), description="Age at which a log file is removed.")
    compress: bool = Field(True, description="Whether rotated log files are compressed.")


class TempCleanup(Block):
    """Temporary files below `temp_roots`."""

    retention: Retention = Field(timedelta(days=7), description="Age at which a temporary file is removed.")


class CacheCleanup(Block):
    """Redis keys that match `cache_patterns`."""

    retention: Retention = Field(timedelta(days=1), description="Idle time after which a cached key is removed.")


class Cleanup(Block):
    """What is tidied away, and where. Nothing outside the roots and patterns listed here is ever touched."""

    logs: LogCleanup = LogCleanup()
    temp: TempCleanup = TempCleanup()
    cache: CacheCleanup = CacheCleanup()
    log_roots: tuple[AbsolutePath, ...] = Field((), description="Directories that hold only log files of this stack.")
    temp_roots: tuple[AbsolutePath, ...] = Field((), description="Directories that hold only its temporary files.")
    cache_patterns: tuple[Text, ...] = Field(("cache:*",), description="Patterns of Redis keys that are cache only.")
