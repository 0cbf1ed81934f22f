"""How a failure reaches the operator: one message and one exit code, and where there are several, each is named.

A command that works on several subjects goes on after the failure of one, whatever its class. It prints each, or names
it under `failures` with --json, and exits with the code of the worst (`errors.WORST_FIRST`).
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from synapse_ops.cli.stack_hint import add_stack_hint
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import SynapseOpsError, worst_exit_code
from synapse_ops.redaction import redact
from synapse_ops.systems.host.errors import host_error


def show_error(error: SynapseOpsError, *, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        body = {"error": _fields(error), "exit_code": error.exit_code}
        print_json(body, err=True, indent=None)
    else:
        echo(error.render(), err=True)


def error_of_bug(bug: Exception) -> SynapseOpsError:
    """Return an exception that nothing expected as an error that names the log file with its traceback.

    What the kernel says of a file or a limit, such as a full disk, is no bug.
    """
    known = host_error(bug) if isinstance(bug, OSError) else None
    if known is not None:
        return known
    try:
        handle, name = tempfile.mkstemp(prefix="synapse-ops-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(redact("".join(traceback.format_exception(bug))))
        where = f"the traceback is in {name}"
    except OSError as full:
        where = f"its traceback could not be written: {full.strerror}"
    return SynapseOpsError(
        f"internal error: {type(bug).__name__}",
        detail=where,
        hint="This is a bug. Please report it with that log file.",
    )


@dataclass
class Failures:
    """What failed so far, in order: the subject, the id of its backup where it was one, and why."""

    rows: list[tuple[str, str | None, SynapseOpsError]] = field(default_factory=list)

    @contextmanager
    def of(self, subject: str, backup_id: str | None = None) -> Iterator[None]:
        """Note the failure of the block and go on. An interrupt still ends the command."""
        try:
            yield
        except SynapseOpsError as error:
            add_stack_hint(error)
            self.rows.append((subject, backup_id, error))
        except Exception as bug:  # noqa: BLE001 - our bug in one subject must not cost the others their backup
            self.rows.append((subject, backup_id, error_of_bug(bug)))

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"subject": name, "backup_id": backup_id, **_fields(error), "exit_code": error.exit_code}
            for name, backup_id, error in self.rows
        ]

    def end(self, body: dict[str, Any] | None = None, *, codes: Iterable[int] = ()) -> NoReturn:
        """Print what failed and exit with the code of the worst. codes: further ones.

        body: with --json, the document to print, to which the failures are added.
        """
        if body is not None:
            print_json({**body, "failures": self.as_json()})
        for name, backup_id, error in self.rows if body is None else ():
            echo(f"{name}{f', backup {backup_id}' if backup_id else ''}:\n{error.render()}", err=True)
        raise SystemExit(worst_exit_code([*codes, *(error.exit_code for *_, error in self.rows)]))


def _fields(error: SynapseOpsError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "detail": error.detail, "hint": error.hint}
