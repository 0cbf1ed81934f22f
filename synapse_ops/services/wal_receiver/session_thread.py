"""What the receiver has done beside the stream, in a thread for as long as a session lasts."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class SessionThread(ABC):
    """Runs `work` in a thread of its own while the block lasts; `work` ends when `_stop` is set.

    Nothing waits for its end: a server that hangs would hold the receiver.
    """

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    @abstractmethod
    def work(self) -> None:
        """Work until `_stop` is set."""
