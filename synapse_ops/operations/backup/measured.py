"""How long the named parts of an operation take. They are kept in `backup.json` and proofs, and plotted by Dagster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Measured:
    """Named durations in seconds, filled in as parts end, by an error too. A part that runs twice counts both times.

    Parts of different names may run in different threads.
    """

    phase_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.phase_s[name] = round(self.phase_s.get(name, 0.0) + time.monotonic() - begun, 3)
