"""The files of a physical copy: unpacked from the archives of BASE_BACKUP, verified, and made safe to start.

A copy holds what tied its source to others: a standby's signal file, which outranks recovery.signal and follows the
live primary; postgresql.auto.conf with its connection string; a fence marker. All of it goes before the first start.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from synapse_ops.errors import IntegrityError, ToolFailed, Unproven
from synapse_ops.systems.host.processes import ServerIdentity, give_to, make_private_dir, run_as
from synapse_ops.systems.postgres.base_backup import MANIFEST
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import FENCE_MARKER

TABLESPACE_MAP = "tablespace_map"
_LEFT_OUT = (
    "standby.signal",
    "recovery.signal",
    "postgresql.auto.conf",
    "backup_label.old",
    "tablespace_map.old",
    FENCE_MARKER,
)
_COPY_BYTES = 1024 * 1024
VERIFY_DIFFERS = 1  # the exit status of pg_verifybackup that is a verdict


def unpack(source: IO[bytes], directory: Path, identity: ServerIdentity | None) -> None:
    """Unpack a tar archive into a directory that is there already.

    Raises IntegrityError for a member that is no plain file or directory below it.
    """
    with tarfile.open(fileobj=source, mode="r|", bufsize=_COPY_BYTES) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
                raise IntegrityError(f'the archive holds "{member.name}", which is no file below the data directory')
            path = directory.joinpath(*parts)
            if member.isdir():
                make_private_dir(path, identity)
                continue
            content = archive.extractfile(member)
            if content is None:
                raise IntegrityError(f'the archive holds "{member.name}" without content')
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
                shutil.copyfileobj(content, sink, _COPY_BYTES)
            give_to(identity, path)


def link_tablespaces(data_dir: Path, places: Mapping[int, Path]) -> None:
    """Point the copy's tablespaces at their new places, by oid; the map of the source's paths goes."""
    for oid, place in places.items():
        link = data_dir / "pg_tblspc" / str(oid)
        link.unlink(missing_ok=True)
        link.symlink_to(place)


def verify(
    data_dir: Path, manifest: bytes, tools: PgTools, identity: ServerIdentity | None, *, timeout_s: float
) -> None:
    """Compare every file with the manifest (pg_verifybackup).

    Raises Unproven with the first lines that differ, and ToolFailed where the program did not come to a verdict.
    """
    path = data_dir / MANIFEST
    path.write_bytes(manifest)
    give_to(identity, path)
    command: list[str | Path] = [tools.path("pg_verifybackup"), "--no-parse-wal", "--quiet", data_dir]
    try:
        run_as(identity, command, timeout_s=timeout_s, env=tools.environment())
    except ToolFailed as error:
        if error.status != VERIFY_DIFFERS:
            raise  # it crashed, and says nothing of the copy
        raise Unproven(
            "the copy is not what its manifest says", detail="\n".join(error.detail.splitlines()[:20])
        ) from error


def combine(
    members: Sequence[Path],
    target: Path,
    tablespaces: Mapping[Path, Path],
    tools: PgTools,
    identity: ServerIdentity | None,
    *,
    timeout_s: float,
) -> None:
    """Make one data directory of a chain (pg_combinebackup): a full backup first, then the incremental ones.

    tablespaces: of the last member, and where they will lie. Raises Unproven where the members do not fit together.
    """
    mapped = [f"--tablespace-mapping={old}={new}" for old, new in tablespaces.items()]
    command: list[str | Path] = [tools.path("pg_combinebackup"), "--no-sync", *mapped, "-o", target, *members]
    try:
        run_as(identity, command, timeout_s=timeout_s, env=tools.environment())
    except ToolFailed as error:
        if error.status != 1:
            raise
        raise Unproven(
            "the base backups of the chain do not fit together", detail="\n".join(error.detail.splitlines()[:20])
        ) from error


def make_inert(data_dir: Path, identity: ServerIdentity | None) -> None:
    """Remove what ties the copy to others, and mark it for recovery. Call it after `verify`."""
    for name in (*_LEFT_OUT, TABLESPACE_MAP):
        (data_dir / name).unlink(missing_ok=True)
    for name in ("recovery.signal", "postgresql.auto.conf"):
        path = data_dir / name
        path.touch(mode=0o600)
        give_to(identity, path)


def is_recovering(data_dir: Path) -> bool:
    """Say whether a server that is started here goes on to recover: a promotion removes the signal at its end."""
    return (data_dir / "recovery.signal").exists()


def corrupt_pages(data_dir: Path, tools: PgTools, identity: ServerIdentity | None, *, timeout_s: float) -> list[str]:
    """Return the pages of a stopped cluster whose checksums are wrong (pg_checksums); empty: all are right.

    A cluster without checksums is one line as well: its pages cannot be judged.
    """
    command: list[str | Path] = [tools.path("pg_checksums"), "--check", "-D", data_dir]
    try:
        run_as(identity, command, timeout_s=timeout_s, env=tools.environment())
    except ToolFailed as error:
        lines = [line for line in error.detail.splitlines() if re.search(r"checksum|error", line)]
        return [f"pg_checksums: {line}" for line in lines[:20]] or [f"pg_checksums: {error.message}"]
    return []


def has_record_at(
    segment_file: Path, position: str, tools: PgTools, identity: ServerIdentity | None, *, timeout_s: float
) -> bool:
    """Say whether a whole WAL record begins at a position of a segment's file, or behind it (pg_waldump)."""
    command: list[str | Path] = [tools.path("pg_waldump"), "--limit=1", f"--start={position}", segment_file]
    done = run_as(identity, command, timeout_s=timeout_s, env=tools.environment(), check=False)
    return done.stdout.startswith("rmgr:")
