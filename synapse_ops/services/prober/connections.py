"""Connections to the prober: each has a time to ask in and to take its answer, and a new one is always taken.

Who connects and says nothing, sends half of a request or never reads the answer costs one connection for seconds. When
there are very many, the oldest goes, not the newest: `/metrics`, which is asked for and answered within milliseconds,
would otherwise be refused for as long as others wish.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
READ_TIMEOUT_S = 10.0  # from the first byte that may come to the last one of a request
ANSWER_TIMEOUT_S = 30.0  # alerts wait for their token and for the disk


class LimitedConnection(H11Protocol):
    """One connection of uvicorn, with these limits; what passes one is cut off without an answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_s = time.monotonic()
        self._limit: asyncio.TimerHandle | None = None
        self._is_asking = True  # a request is expected, or has not come to its end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end_within(READ_TIMEOUT_S)
        open_ones = [one for one in self.connections if isinstance(one, LimitedConnection) and one.is_open]
        if len(open_ones) > MAX_CONNECTIONS:
            min(open_ones, key=lambda one: one.made_s).transport.abort()

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_asking = self.conn.their_state in {h11.IDLE, h11.SEND_BODY}
        if self._limit is None or is_asking is not self._is_asking:
            self._end_within(READ_TIMEOUT_S if is_asking else ANSWER_TIMEOUT_S)
        self._is_asking = is_asking

    def on_response_complete(self) -> None:
        self._no_limit()
        super().on_response_complete()  # limits how long the connection is idle

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_limit()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_within(ANSWER_TIMEOUT_S)  # closing waits for an answer that is read slowly, or never

    def _end_within(self, limit_s: float) -> None:
        self._no_limit()
        self._limit = self.loop.call_later(limit_s, self.transport.abort)

    def _no_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
