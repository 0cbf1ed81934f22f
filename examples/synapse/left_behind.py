"""What a stack leaves behind over weeks, made at once: aged log and temporary files, and cache keys that nobody reads.

Redis takes a key's idle time with RESTORE, files take a time with utime: nobody has to wait a day to see a cleanup.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

LINE = "GET /generate 200 took 12 ms\n"
KEYS = 200
VALUE = b"an answer that was asked for once " * 8


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """How much was made. log_files: one older than a day, one older than a month. keys: idle for more than a day."""

    log_files: int
    temp_files: int
    keys: int


def leave_behind(logs: Path, temp: Path, cache: Any, now: datetime) -> LeftBehind:
    """Make them. cache: a connected `redis.Redis`. Names carry the moment, so every call leaves something new."""
    stamp = now.strftime("%Y%m%dT%H%M%S%f")
    for folder, name, age in (
        (logs, "requests", timedelta(days=2)),
        (logs, "requests-old", timedelta(days=31)),
        (temp, "upload", timedelta(days=8)),
    ):
        path = folder / f"{name}-{stamp}{'.log' if folder is logs else '.part'}"
        path.write_text(LINE * 2000, encoding="utf-8")
        then = (now - age).timestamp()
        os.utime(path, (then, then))
    with cache.pipeline(transaction=False) as pipeline:
        cache.set("cache:answer", VALUE)
        value = cache.dump("cache:answer")
        for number in range(KEYS):
            pipeline.restore(
                f"cache:answer:{stamp}:{number}", 0, value, idletime=int(timedelta(hours=30).total_seconds())
            )
        pipeline.execute()
    return LeftBehind(log_files=2, temp_files=1, keys=KEYS)
