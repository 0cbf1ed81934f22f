"""Stores what a server's archive_command hands over: the same objects as of received WAL, under the same rules.

What PostgreSQL names is one whole file. It is judged, compared with what is stored and stored by the receiver's own
uploader, under the receiver's lease. Everything but the generation is read from the files of that server's directory:
an old primary that was promoted away must not be taken for the one that SQL leads to.

A history is stored with the first segment of its timeline and no sooner (docs/repository-format.md). PostgreSQL hands
it over before any segment and would wait for ever: so it is compared, and taken; its file stays in pg_wal. A
`.partial` file holds what the new timeline's first segment begins with, and nothing reads a `.backup` file: both are
taken as well, and not stored.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import structlog

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import TimelineClaim
from synapse_ops.domain.database.wal_pages import PageJudge
from synapse_ops.domain.database.wal_start import gap_before
from synapse_ops.errors import ConfigError, IntegrityError, Refused, Unreachable, WrongIdentity
from synapse_ops.operations.database.wal_archive import read_wal_archive, wal_lease
from synapse_ops.operations.database.wal_restore import read_system_identifier
from synapse_ops.operations.database.wal_source import open_wal_server, wal_conninfo
from synapse_ops.operations.database.wal_writer import WalWriter, read_digest_key
from synapse_ops.operations.stack import Stack
from synapse_ops.services.wal_receiver.lease import HeldLease
from synapse_ops.services.wal_receiver.spool import SpooledSegment
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.services.wal_receiver.uploader import SCAN_BYTES, Uploader

IDLE_S = 5.0  # then the lease is given up: a primary that is demoted hands nothing over any more
_HISTORY = re.compile(r"([0-9A-F]{8})\.history", re.ASCII)
_NOT_STORED = re.compile(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)", re.ASCII)
_LONG_HEADER = struct.Struct("<HHIQI4xQII")

log = structlog.get_logger()


@dataclass
class _File:
    """The one file under way, as the uploader wants it."""

    one: SpooledSegment | None = None

    def segments(self) -> Iterator[SpooledSegment]:
        if self.one is not None:
            yield self.one

    def drop(self, one: SpooledSegment) -> None:
        del one
        self.one = None


@dataclass
class _Session:
    """What holds between files that follow on each other. last: the segment that was stored."""

    identity: Identity
    data_dir: Path
    lease: HeldLease
    archive: WalArchive
    uploader: Uploader
    file: _File
    last: Segment
    used_s: float = field(default_factory=time.monotonic)


class Pusher:
    """Stores one file at a time. It raises what keeps a file from being stored; the server hands it over again."""

    def __init__(self, stack: Stack, folder: Path, standing: Standing, digest_key: Path | None) -> None:
        self._stack, self._folder, self._standing, self._digest_key = stack, folder, standing, digest_key
        self._session: _Session | None = None
        self._identity: Identity | None = None

    def push(self, data_dir: Path, path: Path) -> str:
        """Store a file; return what is to be said of it. data_dir: of the server."""
        if _NOT_STORED.fullmatch(path.name):
            return "not stored: nothing reads it"
        if found := _HISTORY.fullmatch(path.name):
            return self._compare_history(data_dir, int(found[1], 16), path.read_bytes())
        with FileIO(path) as file:
            segment, page_bytes = _segment_of(path, file)
            try:
                self._store(data_dir, segment, page_bytes, path, file)
            except BaseException:
                self.close()
                raise
        return "stored"

    def close_idle(self) -> None:
        """Give up the lease when nothing was handed over for a while."""
        if self._session is not None and time.monotonic() - self._session.used_s > IDLE_S:
            self.close()

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.lease.close()

    def _store(self, data_dir: Path, segment: Segment, page_bytes: int, path: Path, file: FileIO) -> None:
        session = self._session
        follows = session is not None and (session.last.next(), session.data_dir) == (segment, data_dir)
        if session is None or not follows:
            self.close()
            session = self._session = self._begin(data_dir, segment, page_bytes)
        judge = PageJudge(
            system_identifier=session.identity.system_identifier,
            history=_history(data_dir, segment.timeline)[0],
            start=segment.start,
            segment_bytes=segment.size_bytes,
            page_bytes=page_bytes,
            major=_major(data_dir),
        )
        one = SpooledSegment(segment, path, file, segment.size_bytes)
        for offset in range(0, segment.size_bytes, SCAN_BYTES):
            judge.take(judge.position, one.read_at(offset, min(SCAN_BYTES, segment.size_bytes - offset)))
        row = session.archive.find(segment.timeline)
        if row is not None:
            one.unread = list(row.chunks.get(segment.number, ()))
            one.is_stored = segment.number in row.segments or segment.number in row.unread
        session.file.one = one
        self._standing.received_lsn = self._standing.server_lsn = max(self._standing.server_lsn, segment.stop)
        session.uploader.run()
        if session.uploader.error is not None:
            raise session.uploader.error
        if session.file.one is not None:
            raise Unreachable(f"WAL segment {segment.name} could not be stored: {self._standing.fault}")
        session.last, session.used_s = segment, time.monotonic()

    def _begin(self, data_dir: Path, segment: Segment, page_bytes: int) -> _Session:
        identity = self._identity_of(data_dir)
        repository = self._stack.database_repository()
        lease = HeldLease(repository, wal_lease(identity))
        lease.take()
        try:
            archive = read_wal_archive(repository, identity, age_identities=None)
            history, data = _history(data_dir, segment.timeline)
            self._refuse_left(archive, data_dir, segment)
            writer = WalWriter(
                repository,
                identity,
                digest_key=read_digest_key(self._folder / "digest.key", given=self._digest_key),
                scratch_dir=self._folder,
                recipients=self._stack.spec.encryption.recipients,
                age_identities=self._stack.age_identities(),
                believes=False,  # what is taken for stored is forgotten by the server
            )
            writer.claim(
                TimelineClaim(
                    system_identifier=identity.system_identifier,
                    timeline=segment.timeline,
                    forked_at=str(history.begins_at) if history.forks else None,
                    history_sha256=hashlib.sha256(data).hexdigest() if history.forks else None,
                    node=socket.gethostname(),
                    server_version_num=_major(data_dir) * 10000,
                    segment_bytes=segment.size_bytes,
                    page_bytes=page_bytes,
                    byte_order="little",
                    claimed_at=datetime.now(UTC).replace(microsecond=0),
                )
            )
            self._note_gap(archive, history, segment)
        except BaseException:
            lease.close()
            raise
        standing, file = self._standing, _File()
        standing.identity, standing.timeline, standing.durable_lsn = str(identity), segment.timeline, segment.start
        uploader = Uploader(
            writer,
            file,
            lease,
            archive,
            standing,
            history=history,
            history_data=data,
            page_bytes=page_bytes,
            interval_s=0.0,
            on_durable=lambda _: None,
        )
        uploader.stop()  # each run goes once through
        return _Session(identity, data_dir, lease, archive, uploader, file, segment)

    def _note_gap(self, archive: WalArchive, history: TimelineHistory, segment: Segment) -> None:
        row = archive.find(segment.timeline)
        if row is not None and row.last_lsn is not None and row.last_lsn >= segment.start:
            return
        gap = gap_before(archive, history, segment)
        if gap is not None:
            self._standing.gap_bytes += gap.size_bytes
            self._standing.gap_at_s = time.time()
            log.error("WAL is missing in the repository: it was never handed over", missing=str(gap))

    def _identity_of(self, data_dir: Path) -> Identity:
        """Return the server's identity. A server that shuts down answers no more: then it is the one known before."""
        system_identifier = read_system_identifier(data_dir)
        try:
            with open_wal_server(wal_conninfo(self._stack)) as server:
                self._identity = server.identity
        except Unreachable:
            if self._identity is None:
                raise
        if self._identity.system_identifier != system_identifier:
            raise WrongIdentity(
                f"database.admin leads to the server {self._identity.system_identifier}, and the WAL is of the server"
                f" {system_identifier} in {data_dir}"
            )
        return self._identity

    def _refuse_left(self, archive: WalArchive, data_dir: Path, segment: Segment) -> None:
        """Refuse a server that was promoted away. One that writes the newest timeline may hand over older WAL of it."""
        stored = [row for row in archive.timelines if row.last_lsn is not None]
        if not stored or stored[-1].timeline <= segment.timeline:
            return
        newest = stored[-1].timeline
        try:
            history, data = _history(data_dir, newest)
        except ConfigError:
            history, data = TimelineHistory(segment.timeline), b""
        claim = stored[-1].claim
        ours = claim is not None and claim.history_sha256 == hashlib.sha256(data).hexdigest()
        if not ours or history.timeline_at(segment.start) != segment.timeline:
            raise Refused(
                f"the repository holds WAL of timeline {newest}, this server hands over timeline {segment.timeline}",
                detail="it was promoted away, or restored from an older copy: nothing of it is stored",
                hint="Rejoin it as a standby. A copy that is to go live needs a generation of its own.",
            )

    def _compare_history(self, data_dir: Path, timeline: int, data: bytes) -> str:
        identity = self._identity_of(data_dir)
        row = read_wal_archive(self._stack.database_repository(), identity, age_identities=None).find(timeline)
        claim = row.claim if row is not None else None
        if claim is not None and claim.history_sha256 != hashlib.sha256(data).hexdigest():
            raise WrongIdentity(
                f"timeline {timeline} is claimed by another server, {claim.node}: its history differs",
                hint="A copy that is to go live needs a generation of its own.",
            )
        return "stored with the first segment of its timeline"


def _segment_of(path: Path, file: FileIO) -> tuple[Segment, int]:
    """Return which segment a file is, and its page size. Raises IntegrityError for one that is not what it says."""
    head, size = file.read(_LONG_HEADER.size), path.stat().st_size
    if len(head) < _LONG_HEADER.size:
        raise IntegrityError(f"{path} has {size} bytes, which is no WAL segment")
    *_, segment_bytes, page_bytes = _LONG_HEADER.unpack(head)
    if size != segment_bytes or segment_bytes & (segment_bytes - 1) or not page_bytes:
        raise IntegrityError(f"{path} has {size} bytes, its first page says segments of {segment_bytes}")
    try:
        return Segment.parse(path.name, segment_bytes), page_bytes
    except ValueError as fault:
        raise IntegrityError(f"{path}: {fault}") from None


def _history(data_dir: Path, timeline: int) -> tuple[TimelineHistory, bytes]:
    """Return the way to a timeline, and its history file, which a server keeps for ever."""
    if timeline == 1:
        return TimelineHistory(1), b""
    path = data_dir / "pg_wal" / f"{timeline:08X}.history"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"could not read the history of timeline {timeline}, {path}: {error.strerror}") from error
    return TimelineHistory.parse(timeline, data), data


def _major(data_dir: Path) -> int:
    path = data_dir / "PG_VERSION"
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"could not read the version of the server, {path}: {error}") from error
