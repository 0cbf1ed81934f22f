"""One time limit over many steps: each asks how much is left, so that their limits never add up to more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from synapse_ops.errors import DeadlineExceeded

Result = TypeVar("Result")


class Deadline:
    """A moment after which `what` is given up, by the monotonic clock: setting the host's clock moves nothing."""

    def __init__(self, timeout_s: float, what: str) -> None:
        self.timeout_s = timeout_s
        self.what = what
        self._ends_at = time.monotonic() + timeout_s

    def has_passed(self) -> bool:
        return time.monotonic() >= self._ends_at

    def remaining_s(self, at_most: float | None = None) -> float:
        """Return the seconds left, at most `at_most`; raises DeadlineExceeded when none are."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left if at_most is None else min(left, at_most)

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.what} did not finish within {self.timeout_s:g} s",
            hint="Raise the limit (proof.timeout in the spec, --timeout), or find the hanging step in its log lines.",
        )

    def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, or raise DeadlineExceeded at the deadline although it still hangs.

        It goes on in a separate thread then, which does not keep the process alive: for reads that cannot be cut off.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def carry() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
                errors.append(error)

        thread = threading.Thread(target=carry, name=self.what, daemon=True)
        thread.start()
        thread.join(self.remaining_s())
        if thread.is_alive():
            raise self.exceeded()
        if errors:
            raise errors[0]
        return results[0]
