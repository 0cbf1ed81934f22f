"""Where a backup can be restored to, what a plan and a report of that say, and what both kinds of target share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.database import fingerprint as fingerprints
from synapse_ops.domain.database import structure as structures
from synapse_ops.errors import ConfigError, IntegrityError, counted
from synapse_ops.operations.backup.restoring import RestorePlan
from synapse_ops.operations.database.staged_dump import StagedBackup
from synapse_ops.spec import SecretRef
from synapse_ops.spec.secrets import holds_literal_secret
from synapse_ops.systems.postgres.connection import connect, conninfo_parts, postgres_errors
from synapse_ops.systems.postgres.deparse import same_definitions
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.structure import read_structure

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

SHOWN_DIFFERENCES = 20
_REFER = "Refer to it instead: --server env:NAME, --server file:/PATH, or --server service:NAME of libpq."


@dataclass(frozen=True)
class ServerTarget:
    """A database that does not exist yet, on a server that does. conninfo: of a superuser; it may hold a password."""

    conninfo: str = field(repr=False)
    database: str


@dataclass(frozen=True)
class DirectoryTarget:
    """A data directory that does not exist yet or is empty."""

    directory: Path


Target = ServerTarget | DirectoryTarget


@dataclass(frozen=True)
class DumpRestorePlan(RestorePlan):
    """What a restore of a dump would do.

    where: host:port/database, or the directory. roles_missing: would be created; roles_present: stay as they are.
    """

    record: DumpRecord
    target: Target
    tools: PgTools
    roles_missing: tuple[str, ...]
    roles_present: tuple[str, ...]
    tablespaces_missing: tuple[str, ...]

    def facts(self) -> Mapping[str, str]:
        return {
            "with": f"pg_restore {self.tools.version} in {self.tools.bin_dir}",
            "creates roles": ", ".join(self.roles_missing) or "none",
            "leaves alone": ", ".join(self.roles_present) or "no role",
        }

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "source_server_version": self.record.source.server_version,
            "tools": f"{self.tools.version} in {self.tools.bin_dir}",
            "roles_missing": list(self.roles_missing),
            "roles_present": list(self.roles_present),
            "tablespaces_missing": list(self.tablespaces_missing),
        }


def parse_target(text: str, server: str | None, open_stack: Callable[[], Stack] | None) -> Target:
    """Return the target that a person wrote: an absolute or `./` path is a directory, anything else a new database.

    text: also a conninfo or URL with a database, without a password. server: `env:NAME`, `file:PATH` of a libpq URL,
    or `service:NAME`; None means database.admin of the spec. open_stack: None where there is no spec.
    Raises ConfigError.
    """
    if text.startswith(("/", "./", "../")):
        if server is not None:
            raise ConfigError("--server names the server of a new database, and --to is a directory")
        return DirectoryTarget(Path(text))
    if "=" not in text and "://" not in text:
        return ServerTarget(_server_conninfo(server, open_stack), text)
    if holds_literal_secret(text):
        raise ConfigError("--to holds a password, which every user of this host can read in argv", hint=_REFER)
    if server is not None:
        raise ConfigError("--to is a conninfo already, so --server is not allowed")
    parts = conninfo_parts(text)
    database = parts.pop("dbname", "")
    if not database:
        raise ConfigError("--to names no database: add dbname=NEW_NAME")
    return ServerTarget(_conninfo(**{**parts, "dbname": "postgres"}), database)


def _server_conninfo(server: str | None, open_stack: Callable[[], Stack] | None) -> str:
    """Return the conninfo of a maintenance database on the target server; it may hold a password."""
    if server is None:
        if open_stack is None:
            raise ConfigError("no server given: --to names only the new database", hint=_REFER)
        return open_stack().admin_conninfo("postgres")
    scheme, _, name = server.partition(":")
    if scheme == "service" and name:
        return _conninfo(service=name, dbname="postgres")
    if scheme not in {"env", "file"} or not name:
        raise ConfigError("--server is not of the form env:NAME, file:/PATH or service:NAME", hint=_REFER)
    return _conninfo(SecretRef(scheme, name).resolve(), dbname="postgres")


def _conninfo(address: str = "", **parts: str) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo("", **{**conninfo_parts(address), **parts})


def compare_restored(
    staged: StagedBackup, conninfo: str, *, without_kinds: Sequence[str] = (), without_tablespaces: bool = False
) -> tuple[str, ...]:
    """Compare a restored database with its backup and return notes; raises IntegrityError naming what differs.

    A server of a newer major version hashes and describes differently: then the tables and their rows are counted, and
    a note says that no more could be compared.
    """
    actual = read_fingerprint(conninfo, method=staged.fingerprint.method)
    if actual.server_major != staged.fingerprint.server_major:
        differences = _count_differences(staged.fingerprint, actual)
        majors = f"PostgreSQL {staged.fingerprint.server_major} and {actual.server_major}"
        notes: tuple[str, ...] = (f"only tables and rows were compared: {majors}",)
    else:
        with same_definitions(conninfo) as is_same:
            differences = fingerprints.compare(staged.fingerprint, actual) + structures.compare(
                staged.structure,
                read_structure(conninfo, version=staged.structure.version),
                is_same=is_same,
                without_kinds=without_kinds,
                without_tablespaces=without_tablespaces,
            )
        notes = fingerprints.environment_notes(staged.fingerprint, actual)
    if differences:
        raise IntegrityError(
            f"the restored copy differs from its backup in {counted(len(differences), 'place')}",
            detail="\n".join(differences[:SHOWN_DIFFERENCES]),
        )
    return notes


def _count_differences(expected: fingerprints.Fingerprint, actual: fingerprints.Fingerprint) -> tuple[str, ...]:
    found = []
    for name in sorted(expected.tables.keys() | actual.tables.keys()):
        ours, theirs = expected.tables.get(name), actual.tables.get(name)
        if ours is None or theirs is None or ours.rows != theirs.rows:
            rows = [str(side.rows) if side else "missing" for side in (theirs, ours)]
            found.append(f"table {name}: rows {rows[0]}, expected {rows[1]}")
    return tuple(found)


def analyze(conninfo: str) -> None:
    """Gather planner statistics, so that the first queries are as quick as they were."""
    with connect(conninfo) as connection, postgres_errors("ANALYZE of the restored database"):
        connection.execute("ANALYZE")
