"""Answers a restore_command: one file of WAL out of a repository, without a plan of the recovery.

The server takes "not there" for the end of WAL and opens, so it is said only where nothing of that timeline is stored
from there on, and never was. A hole, a lost object and a store that does not answer are something else. Which server's
WAL it is, the directory that recovers says itself. Source: PostgreSQL documentation, "restore_command".
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_plan import contiguous_stop
from synapse_ops.errors import ConfigError, ObjectMissing, Refused, SynapseOpsError, WalNotArchived
from synapse_ops.operations.database.wal_archive import list_wal_identities, read_wal_archive
from synapse_ops.operations.database.wal_fetch import fetch_history, fetch_segment
from synapse_ops.operations.repository import Repository

WAIT_S = 300.0  # for a store that does not answer, in a recovery that a failure would end
PAUSE_S = 2.0
NOT_THERE, FATAL = 1, 255
_HISTORY = re.compile(r"([0-9A-F]{8})\.history", re.ASCII)
_SEGMENT = re.compile(r"[0-9A-F]{24}", re.ASCII)


class WalFiles:
    """The files of WAL in a repository, for one recovery. identity: None: the one whose system identifier it has."""

    def __init__(
        self, repository: Repository, *, age_identities: tuple[str, ...] = (), identity: Identity | None = None
    ) -> None:
        self._repository, self._age_identities, self._identity = repository, age_identities, identity
        self._archive: WalArchive | None = None

    def write(self, name: str, path: Path, data_dir: Path) -> None:
        """Write a file where the server in `data_dir` wants it. Raises WalNotArchived where WAL ends before it.

        Everything else that is raised is no end: the store's errors, damage, or WAL that was stored and is gone.
        """
        found = self._archive
        segment = _segment(found, name) if found is not None else None
        if found is None or segment is None or segment.number not in found.timeline(segment.timeline).segments:
            found = self._archive = self._read(data_dir)  # what was stored meanwhile
        if (match := _HISTORY.fullmatch(name)) is not None:
            found.refuse_lost_documents(leads_to_newest=True)
            path.write_bytes(fetch_history(self._repository, found, int(match[1], 16)))
            return
        segment = _segment(found, name)
        if segment is None:
            raise WalNotArchived(f"{name} is not in the repository: nothing of its timeline is")
        refuse_hole(found, segment)
        with path.open("wb") as sink:
            self._fetch(found, segment, sink)

    def _fetch(self, archive: WalArchive, segment: Segment, sink: IO[bytes]) -> None:
        fetch_segment(
            self._repository,
            archive,
            segment,
            sink,
            history=TimelineHistory(segment.timeline),
            age_identities=self._age_identities,
        )

    def _read(self, data_dir: Path) -> WalArchive:
        identity = self._identity or self._find(read_system_identifier(data_dir))
        return read_wal_archive(self._repository, identity, age_identities=None)

    def _find(self, system_identifier: str) -> Identity:
        found = [one for one in list_wal_identities(self._repository) if one.system_identifier == system_identifier]
        if len(found) == 1:
            return found[0]
        if not found:
            raise Refused(f"no WAL of server {system_identifier} is in {self._repository.url}")
        raise ConfigError(
            f"{self._repository.url} holds WAL of {len(found)} generations of server {system_identifier}",
            detail=", ".join(map(str, found)),
            hint="Name one of them with --identity.",
        )


def refuse_hole(archive: WalArchive, segment: Segment) -> None:
    """Raise ObjectMissing where a segment lacks WAL that the archive goes on behind, WalNotArchived where WAL ends.

    A timeline's history is stored after its segment with the fork: where that one lacks, an ancestor's would be taken,
    and the commits that were lost at the promotion would come back.
    """
    row = archive.timeline(segment.timeline)
    if row.claim is None:
        archive.refuse_lost_documents(leads_to_newest=False)
    if segment.number in row.segments or segment.number in row.unread:
        return
    stop = segment.start + contiguous_stop(row.chunks.get(segment.number, ()))
    begins_at = row.history.begins_at if row.history is not None else None
    if begins_at is not None and segment.stop <= begins_at:
        raise WalNotArchived(f"WAL segment {segment.name} is before timeline {segment.timeline} begins, {begins_at}")
    ends = [row.last_lsn] if row.last_lsn is not None else []
    if archive.acknowledged is not None and archive.acknowledged[0] == segment.timeline:
        ends.append(archive.acknowledged[1])
    if begins_at is not None:
        ends.append(begins_at)
    if ends and max(ends) > stop:
        raise ObjectMissing(
            f"WAL segment {segment.name} is missing from {stop} on, and WAL was stored up to {max(ends)}",
            hint=f"`synapse-ops restore cluster --until lsn:{stop}` restores what lies before it.",
        )
    if stop == segment.start:
        raise WalNotArchived(f"WAL segment {segment.name} is not in the repository: WAL ends before it")


def answer(write: Callable[[], None], data_dir: Path) -> tuple[int, str]:
    """Return the exit status for a server, and what to say: 0, 1 at the end of WAL, and 255 ends the recovery.

    A store that does not answer is waited for. A standby asks again by itself and must not be ended by an outage.
    """
    give_up_at_s = time.monotonic() + WAIT_S
    while True:
        try:
            write()
        except WalNotArchived as end:
            return NOT_THERE, end.message
        except SynapseOpsError as error:
            words = error.render()
            if not error.retryable:
                return FATAL, words
            if (data_dir / "standby.signal").exists():
                return error.exit_code, words
            if time.monotonic() > give_up_at_s:
                return FATAL, words
            time.sleep(PAUSE_S)
        except OSError as error:
            return FATAL, f"error: {error}"
        else:
            return 0, ""


def _segment(archive: WalArchive, name: str) -> Segment | None:
    row = archive.find(int(name[:8], 16)) if _SEGMENT.fullmatch(name) else None
    return None if row is None else Segment.parse(name, row.segment_bytes)


def read_system_identifier(data_dir: Path) -> str:
    """Return the system identifier of a data directory. Source: pg_control.h: the first field of pg_control."""
    path = data_dir / "global" / "pg_control"
    try:
        with path.open("rb") as file:
            [number] = struct.unpack("<Q", file.read(8))
    except (OSError, struct.error) as error:
        raise ConfigError(f"could not read {path}: {error}", hint="Is this the server's data directory?") from error
    return str(number)
