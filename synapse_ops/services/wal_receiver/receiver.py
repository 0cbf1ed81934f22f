"""Receives WAL of the primary as it is written, and stores it in the repository. Resident; works without Dagster.

    connect -> lease -> identity -> what is stored -> slot -> where to begin -> claim -> stream
                                                                                  |
    this thread: judge each page, spool it, answer the server         uploader: chunks and segments into the store

What is acknowledged as flushed is durable in the store, so that a slot keeps everything else on the primary and a
commit that waits for us waits for the store. This thread never waits for the store; so the server hears from us every
second whatever the store does. Whatever ends a session, the next one begins anew from what the repository holds.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import TimelineClaim
from synapse_ops.domain.database.wal_pages import PageJudge
from synapse_ops.domain.database.wal_start import StreamStart, candidates, plan_start
from synapse_ops.errors import SynapseOpsError, Unreachable, WrongIdentity
from synapse_ops.operations.database.wal_archive import read_wal_archive, wal_lease
from synapse_ops.operations.database.wal_source import SLOT, WalServer, open_wal_server, wal_conninfo
from synapse_ops.operations.database.wal_status import FOLDER
from synapse_ops.operations.database.wal_writer import WalWriter, read_digest_key
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.services.wal_receiver.empty_commits import EmptyCommits
from synapse_ops.services.wal_receiver.lease import HeldLease
from synapse_ops.services.wal_receiver.spool import Spool
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.services.wal_receiver.uploader import Uploader
from synapse_ops.systems.postgres.replication import (
    EndOfTimeline,
    Keepalive,
    ReplicationConnection,
    WalData,
    WalStream,
    connect_replication,
)

APPLICATION_NAME = "synapse-ops wal"
STATUS_S = 1.0  # how often the server hears from us at least
LONGEST_PAUSE_S = 5.0  # between two sessions
DRAIN_S = 10.0  # at a stop: for what has arrived
HANG_UP_S = 10.0  # a server that shuts down waits for us as long as we answer and the store takes nothing

log = structlog.get_logger()


@dataclass(frozen=True)
class _Session:
    """What one connection was begun with."""

    server: WalServer
    archive: WalArchive
    start: StreamStart
    history: TimelineHistory
    history_data: bytes  # of the timeline that is received: an ancestor's, until all of that is stored


class Receiver:
    """One per cluster. `run` blocks until `stop` is called or `has_new_spec`; raises only what is a fault of ours."""

    def __init__(
        self,
        stack: Stack,
        state_dir: Path,
        *,
        has_new_spec: Callable[[], bool] = lambda: False,
        digest_key: Path | None = None,
    ) -> None:
        self.standing = Standing()
        self._folder = state_dir / FOLDER
        self._digest_key = digest_key
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._has_new_spec = has_new_spec
        self._stopping = threading.Event()
        self.use(stack)
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)

    def use(self, stack: Stack) -> None:
        """Take another spec; not while it runs."""
        self._stack = stack
        wal = stack.spec.backup.database.wal
        self._interval_s = wal.chunk_interval.total_seconds()
        self._spool = Spool(self._folder / "spool", wal.spool)
        self._is_over = False

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _is_done(self) -> bool:
        self._is_over = self._is_over or self._stopping.is_set() or self._has_new_spec()
        return self._is_over

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            return  # it is awake already

    def run(self) -> None:
        pause_s = 0.2
        while not self._is_done():
            if self._stack.spec.backup.database.wal_archiving == "off":
                self.standing.fault = "backup.database.wal_archiving is off"
                self._stopping.wait(STATUS_S)
                continue
            began_s = time.monotonic()
            try:
                self._run_session()
                pause_s = 0.0
            except SynapseOpsError as error:
                self.standing.fault = error.message
                self.standing.count("failed_sessions")
                log.warning("receiving WAL was interrupted", fault=error.message, detail=error.detail, hint=error.hint)
                lasted = time.monotonic() - began_s > LONGEST_PAUSE_S
                pause_s = 0.2 if lasted else min(LONGEST_PAUSE_S, max(pause_s, 0.2) * 2)
            self.standing.server = ""
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def _run_session(self) -> None:
        """Receive until the connection ends, the timeline ends, or something is wrong."""
        with ExitStack() as opened:
            conninfo = wal_conninfo(self._stack)
            server = opened.enter_context(open_wal_server(conninfo))
            repository = self._stack.database_repository()
            lease = HeldLease(repository, wal_lease(server.identity))
            lease.take()
            opened.callback(lease.close)
            connection = opened.enter_context(connect_replication(conninfo, application_name=APPLICATION_NAME))
            session = self._begin(repository, server, connection)
            server.close()
            writer = WalWriter(
                repository,
                server.identity,
                digest_key=read_digest_key(self._folder / "digest.key", given=self._digest_key),
                scratch_dir=self._folder,
                recipients=self._stack.spec.encryption.recipients,
                age_identities=self._stack.age_identities(),
            )
            segment = session.start.segment
            writer.claim(_claim(session, segment))
            self._expect(session, segment)
            uploader = Uploader(
                writer,
                self._spool,
                lease,
                session.archive,
                self.standing,
                history=_history_to(session.history, segment.timeline),
                history_data=session.history_data,
                page_bytes=server.page_bytes,
                interval_s=self._interval_s,
                on_durable=lambda _: self._wake(),
            )
            opened.enter_context(EmptyCommits(conninfo, application_name=APPLICATION_NAME))
            stream = connection.stream(SLOT, segment.start, segment.timeline)
            uploader.start()
            try:
                self._receive(stream, session, uploader)
            finally:
                uploader.stop()
                uploader.join(DRAIN_S)
            if uploader.error is not None:
                raise uploader.error

    def _begin(self, repository: Repository, server: WalServer, connection: ReplicationConnection) -> _Session:
        """Find out where to go on. Raises Refused or WrongIdentity for a server whose WAL does not belong here."""
        system = connection.identify()
        if system.system_identifier != server.identity.system_identifier:
            raise WrongIdentity(f"two connections led to two servers: {server.identity} and {system.system_identifier}")
        data = connection.timeline_history(system.timeline) if system.timeline > 1 else b""
        history = TimelineHistory.parse(system.timeline, data)
        archive = read_wal_archive(repository, server.identity, age_identities=None)
        slot_lsn = _ready_slot(server, connection)
        wanted = candidates(archive, history, slot_lsn, server.segment_bytes)
        start = plan_start(
            archive,
            history,
            flush_lsn=system.flush_lsn,
            slot_lsn=slot_lsn,
            segment_bytes=server.segment_bytes,
            available=server.stored_segments([one.name for one in wanted]),
        )
        if start.gap is not None:
            self.standing.gap_bytes += start.gap.size_bytes
            self.standing.gap_at_s = time.time()
            log.error("WAL is lost to the repository: the server has it no more", missing=str(start.gap))
        self.standing.identity = str(server.identity)
        self.standing.timeline = start.segment.timeline
        self.standing.server_lsn = system.flush_lsn
        self.standing.durable_lsn = self.standing.received_lsn = start.segment.start
        if 1 < start.segment.timeline < system.timeline:
            data = connection.timeline_history(start.segment.timeline)
        return _Session(server, archive, start, history, data)

    def _expect(self, session: _Session, segment: Segment) -> None:
        """Empty the spool, and note what is stored of the segment that is received again."""
        self._spool.clear()
        row = next((one for one in session.archive.timelines if one.timeline == segment.timeline), None)
        if row is not None:
            is_stored = segment.number in row.segments or segment.number in row.unread
            self._spool.begin(segment, row.chunks.get(segment.number, ()), is_stored=is_stored)

    def _receive(self, stream: WalStream, session: _Session, uploader: Uploader) -> None:
        server, standing = session.server, self.standing
        segment = session.start.segment
        judge = PageJudge(
            system_identifier=server.identity.system_identifier,
            history=_history_to(session.history, segment.timeline),
            start=segment.start,
            segment_bytes=server.segment_bytes,
            page_bytes=server.page_bytes,
            major=server.version_num // 10000,
        )
        said_at_s, said = 0.0, Lsn(0)
        asked_at_s: float | None = None
        while not self._is_done() and uploader.is_alive():
            now_s = time.monotonic()
            if now_s - said_at_s >= STATUS_S or standing.durable_lsn > said:
                said_at_s, said = now_s, standing.durable_lsn
                stream.acknowledge(judge.position, said)
            if self._spool.is_full:  # nothing more is read; the server hears from us as above
                select.select([self._wake_out], [], [], STATUS_S)
                self._take_wakes()
                continue
            message = stream.read(STATUS_S, self._wake_out)
            self._take_wakes()
            if isinstance(message, WalData):
                judge.take(message.start, message.data)
                self._spool.append(segment.timeline, message.start, message.data, server.segment_bytes)
                standing.received_lsn, standing.server_lsn = judge.position, max(message.server_lsn, judge.position)
                standing.count("received_bytes", len(message.data))
            elif isinstance(message, Keepalive):
                standing.server_lsn = max(message.server_lsn, standing.server_lsn)
                if message.wants_reply:  # it hears from us each second: it asks only when it shuts down
                    said_at_s, asked_at_s = 0.0, asked_at_s or now_s
            elif isinstance(message, EndOfTimeline):
                log.info("the timeline ended", timeline=segment.timeline, next=message.next_timeline)
                return
            if standing.durable_lsn >= standing.server_lsn:
                asked_at_s = None
            elif asked_at_s is not None and now_s - asked_at_s > HANG_UP_S:
                raise Unreachable(f"{server.address} shuts down, and the store does not take the last of its WAL")
            standing.server = standing.server or server.address
            standing.note_waiting(judge.position)

    def _take_wakes(self) -> None:
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            return


def _history_to(history: TimelineHistory, timeline: int) -> TimelineHistory:
    """Return the way to an ancestor, which is the beginning of the way to its descendant."""
    return TimelineHistory(timeline, tuple(fork for fork in history.forks if fork.timeline < timeline))


def _ready_slot(server: WalServer, connection: ReplicationConnection) -> Lsn:
    """Make the slot, or make it anew where it was lost, and return from where it keeps WAL.

    We hold the lease: who streams from the slot is an earlier receiver, which may not know yet that it has ended.
    """
    found = connection.read_slot(SLOT)
    if found is not None and found.restart_lsn is None:
        log.error("the replication slot was lost: the server removed WAL that was not stored", slot=SLOT)
        connection.drop_slot(SLOT)
        found = None
    if found is None:
        connection.create_slot(SLOT)
        found = connection.read_slot(SLOT)
    server.end_stale_sender(SLOT)
    if found is None or found.restart_lsn is None:
        raise SynapseOpsError(f'slot "{SLOT}" was made and keeps no WAL')
    return found.restart_lsn


def _claim(session: _Session, segment: Segment) -> TimelineClaim:
    server, history = session.server, _history_to(session.history, segment.timeline)
    return TimelineClaim(
        system_identifier=server.identity.system_identifier,
        timeline=segment.timeline,
        forked_at=str(history.begins_at) if history.forks else None,
        history_sha256=hashlib.sha256(session.history_data).hexdigest() if history.forks else None,
        node=server.address,
        server_version_num=server.version_num,
        segment_bytes=server.segment_bytes,
        page_bytes=server.page_bytes,
        byte_order="little",
        claimed_at=datetime.now(UTC).replace(microsecond=0),
    )
