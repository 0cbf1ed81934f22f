"""What PostgreSQL, libpq and the client say when something is wrong, as our errors. No error contains a password.

A statement's error carries its SQLSTATE. An error while connecting carries only words, which are those of the server's
`lc_messages`; the table has the English ones, and any other answer of a server is told as such.
Source: PostgreSQL documentation, "PostgreSQL Error Codes"; pgbouncer's client.c and objects.c for its own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synapse_ops.errors import (
    ConfigError,
    DeadlineExceeded,
    IntegrityError,
    Refused,
    SynapseOpsError,
    Throttled,
    ToolFailed,
    Unreachable,
)

if TYPE_CHECKING:
    import psycopg

CONNINFO_HINT = "A libpq URL has the form postgresql://user:password@host:5432/database; encode special characters."


class PostgresRefused(ToolFailed):
    """PostgreSQL answered with an error that waiting does not mend. stderr_tail: what it said."""

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        SynapseOpsError.__init__(self, message, detail=detail, hint=hint)
        self.argv, self.status, self.stderr_tail = ("postgres",), 1, detail


@dataclass(frozen=True, slots=True)
class _Cause:
    """states: SQLSTATEs, or the two characters of a class; words: as it is said where there is no SQLSTATE."""

    states: tuple[str, ...]
    words: str
    kind: type[SynapseOpsError]
    message: str
    hint: str


# The first that fits: a state before its class, and what an operator must mend before what may pass.
_CAUSES = (
    _Cause(
        ("28P01",),
        r"password authentication failed|no password supplied|empty password",
        ConfigError,
        "PostgreSQL refused {what}: the password was not accepted",
        "Check user and password of database.admin in the spec.",
    ),
    _Cause(
        ("28",),
        r'role ".*" does not exist|not permitted to log in|pg_hba\.conf|authentication failed for user|no such user',
        ConfigError,
        "PostgreSQL refused {what}: the role may not log in",
        "Does the user of database.admin exist, has it LOGIN, and does pg_hba.conf let it in from this host?",
    ),
    _Cause(
        ("3D",),
        r'database ".*" does not exist|no such database',
        ConfigError,
        "PostgreSQL refused {what}: there is no such database",
        "`psql -l` lists the databases of a server; correct the name in the spec or the command.",
    ),
    _Cause(
        ("42501",),
        r"permission denied",
        ConfigError,
        "PostgreSQL refused {what}: the role lacks the privilege",
        "database.admin in the spec must name a superuser.",
    ),
    _Cause(
        (),
        r"is not currently accepting connections",
        ConfigError,
        "PostgreSQL refused {what}: the database takes no connections",
        "ALTER DATABASE ... ALLOW_CONNECTIONS true lets clients in again.",
    ),
    _Cause(
        (),
        r"SSL error: |certificate|does not support SSL|channel binding|unsupported frontend protocol"
        r"|expected authentication request|received invalid response to SSL|SSL connection is required",
        ConfigError,
        "cannot agree with PostgreSQL on {what}",
        "Check sslmode, sslrootcert, host and port of the connection string. Is a PostgreSQL server there?",
    ),
    _Cause(
        ("53100",),
        r"No space left on device|Disk quota exceeded",
        PostgresRefused,
        "PostgreSQL has no disk space left for {what}",
        "Free space where its data directory, WAL, tablespaces and temporary files lie, and run it again.",
    ),
    _Cause(
        ("53200",),
        r"out of (shared )?memory|Cannot allocate memory",
        Throttled,
        "PostgreSQL has no memory left for {what}",
        "Try again later. Where it lasts: `out of shared memory` asks for a higher max_locks_per_transaction,"
        " `out of memory` for more memory or a smaller work_mem.",
    ),
    _Cause(
        ("53300",),
        r"too many (clients|connections)|connection slots are reserved|no more connections allowed",
        Throttled,
        "PostgreSQL has no connection left for {what}",
        "Try again later. Where it lasts, raise max_connections or the CONNECTION LIMIT of the role or database, or end"
        " idle sessions (pg_stat_activity).",
    ),
    _Cause(
        ("53400",),
        "",
        PostgresRefused,
        "PostgreSQL reached a limit of its configuration in {what}",
        "Raise the setting that it names, such as temp_file_limit, for the role of database.admin.",
    ),
    _Cause(
        ("53",),
        "",
        Throttled,
        "PostgreSQL lacks resources for {what}",
        "Try again later; its log tells which resource.",
    ),
    _Cause(
        ("57P03",),
        r"the database system is|not yet accepting connections",
        Unreachable,
        "PostgreSQL takes no connections now, for {what}",
        "It is starting, recovering or shutting down: try again in a minute. Where it lasts, see its log.",
    ),
    _Cause(
        ("57P01", "57P02"),
        r"terminating connection",
        Unreachable,
        "PostgreSQL ended the session of {what}",
        "Was the server restarted, did it crash, or did someone end the session? Its log tells; then run it again.",
    ),
    _Cause(
        ("57P04",),
        "",
        PostgresRefused,
        "the database was dropped during {what}",
        "Was that intended? Else restore it from a backup.",
    ),
    _Cause(
        ("57014", "57P05", "55P03", "25P03", "25P04"),
        r"canceling authentication due to timeout|query_wait_timeout",
        DeadlineExceeded,
        "could not finish {what} in time",
        "Was it cancelled, or does another session hold a lock that it needs? See pg_stat_activity and pg_locks.",
    ),
    _Cause(
        ("40",),
        "",
        Throttled,
        "PostgreSQL ended {what} because of other work on the server",
        "Run it again. At a standby, hot_standby_feedback = on keeps replay from ending long reads.",
    ),
    _Cause(
        ("25006",),
        "",
        Refused,
        "PostgreSQL takes no writes for {what}",
        "Is it a standby? Name the primary.",
    ),
    _Cause(
        ("XX001", "XX002"),
        "",
        IntegrityError,
        "PostgreSQL found damaged data in {what}",
        "Keep the backups that are proven. Check disk and memory of the server, then restore or repair the database.",
    ),
    _Cause(
        ("58",),
        r"could not (open|read|write) file",
        PostgresRefused,
        "PostgreSQL could not use its files in {what}",
        "See the server's log, and the kernel's for the disk.",
    ),
)
_OTHER_ANSWER = _Cause(
    (), "FATAL", Unreachable, "PostgreSQL refused {what}", "The detail is the server's own answer; see its log."
)
_NO_ANSWER = _Cause(
    (),
    "",
    Unreachable,
    "could not reach PostgreSQL for {what}",
    "Is the server up and reachable? Check host and port of the connection string.",
)


def postgres_error(error: psycopg.Error, what: str) -> SynapseOpsError:
    """Return what an error of the client, of libpq or of the server is in our terms; it names `what`."""
    import psycopg

    state = error.sqlstate
    if state is not None:
        cause = next((cause for cause in _CAUSES if {state, state[:2]} & set(cause.states)), None)
        if cause is None and state[:2] != "08":
            return PostgresRefused(f"PostgreSQL refused {what}", detail=_facts(error))
        return _explained(cause or _NO_ANSWER, what, _facts(error))
    if isinstance(error, psycopg.OperationalError):
        text = str(error).strip()
        return _explained(_cause_of_words(text) or _NO_ANSWER, what, text)
    if isinstance(error, psycopg.InterfaceError):
        return _explained(_NO_ANSWER, what, _facts(error))
    if isinstance(error, psycopg.ProgrammingError):  # raised by the client: a connection string that cannot be parsed
        return ConfigError(f"cannot use the connection string for {what}", hint=CONNINFO_HINT)
    return PostgresRefused(f"PostgreSQL refused {what}", detail=_facts(error))


def program_error(text: str, what: str) -> SynapseOpsError | None:
    """Return what a client program's words, such as pg_dump's, say about the server or the connection; None for others.

    An ERROR inside the session may quote anything that people wrote: only a lack of resources is looked for there.
    """
    lines = text.splitlines()
    refused = "\n".join(line for line in lines if "FATAL:" in line or "connection to server" in line)
    if refused:
        return _explained(_cause_of_words(refused) or _NO_ANSWER, what, text)
    failed = "\n".join(line for line in lines if "ERROR:" in line or "server closed the connection" in line)
    cause = _cause_of_words(failed, (cause for cause in _CAUSES if cause.kind is not ConfigError))
    if cause is None and "server closed the connection" in failed:
        cause = _NO_ANSWER
    return None if cause is None else _explained(cause, what, text)


def _cause_of_words(text: str, causes: Iterable[_Cause] = (*_CAUSES, _OTHER_ANSWER)) -> _Cause | None:
    return next((cause for cause in causes if cause.words and re.search(cause.words, text)), None)


def _explained(cause: _Cause, what: str, detail: str) -> SynapseOpsError:
    return cause.kind(cause.message.format(what=what), detail=detail, hint=cause.hint)


def _facts(error: psycopg.Error) -> str:
    """Return the server's message with its SQLSTATE; libpq's own messages hold no password."""
    primary = error.diag.message_primary
    if primary is None:
        return str(error).strip()
    lines = [f"{error.sqlstate} {primary}"]
    lines += [extra for extra in (error.diag.message_detail, error.diag.message_hint, error.diag.context) if extra]
    return "\n".join(lines)
