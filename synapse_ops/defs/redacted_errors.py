"""Exceptions as Dagster records them, freed from secrets.

A run, a tick or a definition that fails is stored with its whole traceback, and with those of its causes: in the event
storage, in compute logs, in the code server's log. All of them are made by one function of Dagster.
"""

import functools
import os
from typing import Any

from dagster_shared.error import SerializableErrorInfo

from synapse_ops.redaction import redact, remember


@functools.cache
def redact_recorded_errors() -> None:
    """Have Dagster record exceptions of this process without any secret that was resolved here."""
    remember(os.environ.get("DAGSTER_PG_PASSWORD", ""))
    record = SerializableErrorInfo.from_traceback.__func__  # type: ignore[attr-defined]

    def without_secrets(cls: type[SerializableErrorInfo], traceback: Any) -> SerializableErrorInfo:
        made = record(cls, traceback)  # its causes were made by us already
        return made._replace(message=redact(made.message), stack=[redact(line) for line in made.stack])  # type: ignore[no-any-return]

    SerializableErrorInfo.from_traceback = classmethod(without_secrets)  # type: ignore[assignment]
