"""How log lines leave the process: ECS-shaped JSON, colour on a terminal; always on stderr.

One correlation id is bound per command or Dagster run (`bind_correlation_id`) and stands on every line, in the
`started.json` of a backup and in the run's tags, so that a line leads to its run and back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from synapse_ops.domain.printable_text import printable
from synapse_ops.redaction import redact


def configure_logging(level: str | None = None) -> None:
    """Set the format by whether stderr is a terminal; `level` defaults to SYNAPSE_LOG_LEVEL, then info."""
    number = logging.getLevelNamesMapping().get((level or os.environ.get("SYNAPSE_LOG_LEVEL", "info")).upper(), 20)
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level]
    if sys.stderr.isatty():
        chain = [*shared, structlog.processors.TimeStamper("%H:%M:%S"), _printable, structlog.dev.ConsoleRenderer()]
    else:
        stamp = structlog.processors.TimeStamper("iso", utc=True, key="@timestamp")
        chain = [*shared, stamp, structlog.processors.format_exc_info, _to_ecs, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(sys.stderr),  # the stderr of now: it may be replaced
        cache_logger_on_first_use=False,
    )


def take_over_libraries() -> None:
    """Have what libraries log through `logging` leave in our format too, for a process that is ours alone."""
    root = logging.getLogger()
    if not any(isinstance(handler, _OfLibraries) for handler in root.handlers):
        root.addHandler(_OfLibraries(logging.WARNING))


class _OfLibraries(logging.Handler):
    """Passes on the first line of each warning, and the same line in a row once.

    While Dagster's storage is away, its client writes four lines at each of its many tries.
    """

    _last = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = next(iter(record.getMessage().splitlines()), "")
        if line != self._last:
            self._last = line
            structlog.get_logger().log(record.levelno, line, logger=record.name)


class _Lines(structlog.PrintLogger):
    """Prints lines, without secrets. A line that cannot be written is lost: a full log disk must not end any work."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError):
            super().msg(redact(message))

    log = debug = info = warn = warning = error = err = fatal = failure = critical = exception = msg


def _printable(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Have no name or answer of others reach a terminal as an escape sequence; JSON escapes them by itself."""
    del logger, method
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _to_ecs(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the fields as the Elastic Common Schema does; our own go under `synapse.`."""
    del logger, method
    ecs: dict[str, Any] = {
        "@timestamp": event.pop("@timestamp"),
        "log.level": event.pop("level"),
        "message": event.pop("event"),
        "ecs.version": "8.11",
        "service.name": "synapse-ops",
        "process.pid": os.getpid(),
    }
    if "correlation_id" in event:
        ecs["trace.id"] = event.pop("correlation_id")
    if "exception" in event:
        ecs["error.stack_trace"] = event.pop("exception")
    ecs.update({f"synapse.{name}": value for name, value in event.items()})
    return ecs


def bind_correlation_id(correlation_id: str | None = None) -> str:
    """Bind an id (a Dagster run id, or a new one) to every later log line of this context, and return it."""
    bound = correlation_id or os.urandom(8).hex()
    structlog.contextvars.bind_contextvars(correlation_id=bound)
    return bound


def current_correlation_id() -> str:
    """Return the bound id, binding a new one where there is none."""
    bound = structlog.contextvars.get_contextvars().get("correlation_id")
    return bound if isinstance(bound, str) else bind_correlation_id()
