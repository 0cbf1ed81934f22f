"""Every error that Synapse Ops raises on purpose.

    SynapseOpsError                     exit  1   our bug, or a cause without its own class
    |-- ConfigError                     exit  2   settings or arguments are wrong; all faults listed at once
    |   |-- ProgramMissing                        this host lacks a program or an extension of PostgreSQL
    |-- Refused                         exit 10   declined before anything was changed
    |   |-- TargetNotEmpty                        the target of a restore already holds data
    |   |-- PlanChanged                           the given digest is not that of a plan that can be applied now
    |-- LeaseHeld                       exit 11   another process works; owner and expiry are given
    |-- LeaseLost                       exit 11   the lease is no longer held; the work stopped
    |-- Unreachable                     exit 12   a server or store does not answer; may pass by itself
    |   |-- Throttled                             the server is throttling requests
    |   |-- DeadlineExceeded                      it did not finish in time
    |-- IntegrityError                  exit 13   data is not what it claims to be
    |   |-- ChecksumMismatch                      stored bytes differ from their recorded digest
    |   |-- ObjectMissing                         an object that a backup names is not in the store
    |   |-- DocumentUnreadable                    a JSON document of the repository cannot be parsed
    |   |-- WrongIdentity                         it belongs to another system, generation or backup
    |   |-- WalNotArchived                        WAL that was asked for is not in the repository
    |-- Unproven                        exit 14   a check could not be completed; never a pass
    |   |-- KeyMissing                            no available key opens an encrypted object
    |-- ToolFailed                      exit 15   an external program failed; secrets are masked
    |-- HostFailed                      exit 15   this host lacks what the work needs: disk space, memory, open files
    |-- DriftFound                      exit 16   live differs from rendered
    |-- Unhealthy                       exit 17   a probed endpoint or server is degraded or failed

Messages are one line, lower case, without a full stop: kind and name of the object, both values, the setting's name.
"could not" may succeed next time, "cannot" will not. `detail` holds facts; `hint` is a full sentence with the command
to run, or the question that finds the cause. No message ever holds a secret: what a library quoted is redacted.
Exit codes stay under 126, because PostgreSQL's archive_command treats higher ones differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar

from synapse_ops.redaction import redact


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 backup`, `2 backups`. plural: where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


class SynapseOpsError(Exception):
    """The base of all errors: a message, details and a hint. By itself it is an internal error.

    `exit_code` and `retryable` belong to the class, so that the CLI, Dagster's retry policy and alerts agree.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        self.message, self.detail, self.hint = redact(message), redact(detail), redact(hint)
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The class name: the stable word for this cause in JSON output and in alerts."""
        return type(self).__name__

    def render(self) -> str:
        """Return the error as an operator reads it: `error:`, then `detail:` and `hint:` where there are any."""
        lines = [f"error: {self.message}"]
        lines += [f"detail: {line}" for line in self.detail.splitlines()]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


# where several things failed, the exit code is that of the first of these: a bug, bad data, doubt, then the rest
WORST_FIRST = (1, 13, 14, 2, 10, 11, 12, 15, 16, 17)


def worst_exit_code(codes: Iterable[int]) -> int:
    """Return the exit code of the worst failure; 0 for none."""
    return min((code for code in codes if code), key=WORST_FIRST.index, default=0)


class ConfigError(SynapseOpsError):
    """Settings or arguments are wrong. Several faults are listed in `detail`, one a line."""

    exit_code = 2


class ProgramMissing(ConfigError):
    """This host lacks a program or an extension of PostgreSQL that the work needs; no backup is to blame."""


class Refused(SynapseOpsError):
    """We declined before changing anything."""

    exit_code = 10


class TargetNotEmpty(Refused):
    """The target of a restore already holds data."""


class PlanChanged(Refused):
    """The given digest is not that of a plan that can be applied now."""


class LeaseHeld(SynapseOpsError):
    """Another owner holds the lease; safe to try again after `expires_at` (aware UTC)."""

    exit_code = 11
    retryable = True

    def __init__(self, lease: str, *, owner: str, expires_at: datetime) -> None:
        super().__init__(
            f'could not take lease "{lease}": held by {owner} until {expires_at.isoformat(timespec="seconds")}',
            hint="Wait for it to finish; a holder that died loses the lease at the time given.",
        )
        self.lease = lease
        self.owner = owner
        self.expires_at = expires_at


class LeaseLost(SynapseOpsError):
    """The lease is no longer held. The work stopped at a step from which it can be run again."""

    exit_code = 11
    retryable = True


class Unreachable(SynapseOpsError):
    """A server or store does not answer. May pass by itself."""

    exit_code = 12
    retryable = True


class Throttled(Unreachable):
    """The server is throttling requests; try again later."""


class DeadlineExceeded(Unreachable):
    """Something did not finish within its `timeout_s`."""


class IntegrityError(SynapseOpsError):
    """Data is not what it claims to be. Never retried."""

    exit_code = 13


class ChecksumMismatch(IntegrityError):
    """Stored bytes differ from their recorded digest."""


class ObjectMissing(IntegrityError):
    """An object that a document names is not in the store."""


class DocumentUnreadable(IntegrityError):
    """A JSON document of the repository is torn, of another format, or not ours."""


class WrongIdentity(IntegrityError):
    """A document or server belongs to another system, generation or backup than the one asked for."""


class WalNotArchived(IntegrityError):
    """WAL that was asked for is not in the repository: the end of it where a plan expects that, else a gap."""


class Unproven(SynapseOpsError):
    """A check could not be completed. This is never a pass."""

    exit_code = 14
    retryable = True


class KeyMissing(Unproven):
    """No available key opens an encrypted object; `recipients` are the public keys it was written for."""

    def __init__(self, message: str, *, recipients: Sequence[str], hint: str = "") -> None:
        super().__init__(message, detail="written for " + ", ".join(recipients), hint=hint)
        self.recipients = tuple(recipients)


class ToolFailed(SynapseOpsError):
    """An external program failed. The caller masks secrets in `argv` and `stderr_tail`."""

    exit_code = 15

    def __init__(self, argv: Sequence[str], *, status: int, stderr_tail: str, hint: str = "") -> None:
        died = f"signal {-status}" if status < 0 else f"status {status}"
        super().__init__(f"{argv[0].rsplit('/', 1)[-1]} ended with {died}", detail=stderr_tail.strip(), hint=hint)
        self.argv = tuple(argv)
        self.status = status
        self.stderr_tail = stderr_tail


class HostFailed(SynapseOpsError):
    """This host lacks what the work needs: disk space, memory, open files."""

    exit_code = 15


class DriftFound(SynapseOpsError):
    """Live objects differ from the rendered documents."""

    exit_code = 16


class Unhealthy(SynapseOpsError):
    """A probed endpoint or server is degraded or failed."""

    exit_code = 17
