"""Receives WAL of the primary as it is written, and stores it in the repository. Resident; works without Dagster.

    connect -> lease -> identity -> what is stored -> slot -> where to begin -> claim -> stream
                                                                                  |
    this thread: judge each page, spool it, answer the server         uploader: chunks and segments into the store

What is acknowledged as flushed is durable in the store, so that a slot keeps everything else on the primary and a
commit that waits for us waits for the store. This thread never waits for the store; so the server hears from us every
second whatever the store does. Whatever ends a session, the next one begins anew from what the repository holds.

While the store is away no session can begin. So one whose connection ends goes on with others, until what has arrived
is stored: where the server has dropped the slot, the spool holds what nobody else has, and is filled on. One that is to
begin fills it as well. What a dead process has left in it is stored too, before a gap is named.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.synchronous import RECEIVER as APPLICATION_NAME
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_start import candidates, left_over, plan_start
from synapse_ops.errors import SynapseOpsError, Unreachable, WrongIdentity
from synapse_ops.operations.database.wal_archive import read_wal_archive, wal_lease
from synapse_ops.operations.database.wal_source import SLOT, WalServer, open_wal_server, wal_conninfo, wal_conninfos
from synapse_ops.operations.database.wal_status import FOLDER
from synapse_ops.operations.database.wal_writer import WalWriter, read_digest_key
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.services.wal_receiver.commands import WalCommands
from synapse_ops.services.wal_receiver.empty_commits import EmptyCommits
from synapse_ops.services.wal_receiver.lease import HeldLease
from synapse_ops.services.wal_receiver.session import Session
from synapse_ops.services.wal_receiver.slot import ready_slot, slot_to_stream_from
from synapse_ops.services.wal_receiver.spool import Spool
from synapse_ops.services.wal_receiver.standby_slots import StandbySlots
from synapse_ops.services.wal_receiver.standing import NOWHERE, Standing
from synapse_ops.services.wal_receiver.synchronous_commits import SynchronousCommits
from synapse_ops.services.wal_receiver.uploader import SCAN_BYTES, Uploader
from synapse_ops.services.wal_receiver.without_store import PATIENCE_S, LeaseTaking, session_without_store
from synapse_ops.systems.postgres.replication import (
    EndOfTimeline,
    Keepalive,
    ReplicationConnection,
    WalData,
    WalStream,
    connect_replication,
)

STATUS_S = 1.0  # how often the server hears from us at least
LONGEST_PAUSE_S = 5.0  # between two sessions
DRAIN_S = 10.0  # at a stop: for what has arrived
RECONNECT_S = 2.0  # for what has arrived, before another connection brings more
HANG_UP_S = 10.0  # a server that shuts down waits for us as long as we answer and the store takes nothing

log = structlog.get_logger()


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
        self._interval_s = 0.0 if wal.synchronous else wal.chunk_interval.total_seconds()
        self._spool = self.standing.spool = Spool(self._folder / "spool", wal.spool)
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
            archiving = self._stack.spec.backup.database.wal_archiving
            if archiving == "off":
                self.standing.fault = "backup.database.wal_archiving is off"
                self._stopping.wait(STATUS_S)
                continue
            began_s = time.monotonic()
            try:
                if archiving == "command":
                    self._serve_commands()
                else:
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

    def _serve_commands(self) -> None:
        """Take what the server of this host hands over, instead of streaming."""
        commits = EmptyCommits(wal_conninfo(self._stack), application_name=APPLICATION_NAME, on_pace=lambda pace: None)
        with commits, WalCommands(self._stack, self._folder, self.standing, self._digest_key) as commands:
            while not self._is_done():
                commands.tend()
                self._stopping.wait(STATUS_S)
        self.standing.server = ""

    def _run_session(self) -> None:
        """Receive until the connection ends, the timeline ends, or something is wrong."""
        with ExitStack() as opened:
            conninfo = wal_conninfo(self._stack)
            server = opened.enter_context(open_wal_server(conninfo))
            repository = self._stack.database_repository()
            lease = HeldLease(repository, wal_lease(server.identity))
            opened.callback(lease.close)
            self._take(lease, conninfo, server)
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
            if self._store_left_over(session, connection, writer, lease):
                return
            segment = session.start.segment
            self._note_start(session)
            writer.claim(session.claim())
            self._expect(session, segment)
            uploader = self._uploader(session, segment.timeline, writer, lease)
            commits = EmptyCommits(conninfo, application_name=APPLICATION_NAME, on_pace=self.standing.note_pace)
            opened.enter_context(commits)
            nodes = wal_conninfos(self._stack)
            opened.enter_context(
                StandbySlots(nodes, lambda: self.standing.durable_lsn, application_name=APPLICATION_NAME)
            )
            opened.enter_context(SynchronousCommits(conninfo, self._stack.spec, self.standing))
            uploader.start()
            try:
                self._receive(connection.stream(SLOT, segment.start, segment.timeline), session, segment, uploader)
            except SynapseOpsError as cut:
                log.warning("the connection that WAL came on has ended", fault=cut.message)
                connection.close()
                self.standing.server = ""
                self._receive_on(conninfo, session, uploader)
                raise
            finally:
                uploader.stop()
                uploader.join(DRAIN_S)
            if uploader.error is not None:
                raise uploader.error

    def _take(self, lease: HeldLease, conninfo: str, server: WalServer) -> None:
        """Take the lease. While the store does not answer, WAL goes into the spool."""
        taking = LeaseTaking(lease)
        taking.start()
        taking.join(PATIENCE_S)
        while taking.is_alive():
            self.standing.fault = taking.fault or "the store does not answer"
            try:
                self.standing.note_pace(server.pace())
                with connect_replication(conninfo, application_name=APPLICATION_NAME) as connection:
                    self._spool.adopt(server.segment_bytes)
                    session, slot_lsn = session_without_store(server, connection, self._spool.go_on_with())
                    segment = session.start.segment
                    self.standing.durable_lsn, self.standing.received_lsn = NOWHERE, segment.start
                    slot = SLOT if slot_lsn <= segment.start else None
                    self._receive(connection.stream(slot, segment.start, segment.timeline), session, segment, taking)
            except SynapseOpsError as cut:
                log.warning("WAL is not received while the store is away", fault=f"{cut.message} {cut.detail}")
                self.standing.server = ""
                if server.connection.closed:
                    raise
            if self._is_done():
                raise Unreachable(self.standing.fault)
            taking.join(RECONNECT_S)
        self.standing.server = ""
        if taking.error is not None:
            raise taking.error

    def _uploader(self, session: Session, timeline: int, writer: WalWriter, lease: HeldLease) -> Uploader:
        return Uploader(
            writer,
            self._spool,
            lease,
            session.archive,
            self.standing,
            history=session.history_to(timeline),
            history_data=session.history_data,
            page_bytes=session.server.page_bytes,
            interval_s=self._interval_s,
            on_durable=lambda _: self._wake(),
        )

    def _begin(self, repository: Repository, server: WalServer, connection: ReplicationConnection) -> Session:
        """Find out where to go on. Raises Refused or WrongIdentity for a server whose WAL does not belong here."""
        system = connection.identify()
        if system.system_identifier != server.identity.system_identifier:
            raise WrongIdentity(f"two connections led to two servers: {server.identity} and {system.system_identifier}")
        data = connection.timeline_history(system.timeline) if system.timeline > 1 else b""
        history = TimelineHistory.parse(system.timeline, data)
        archive = read_wal_archive(repository, server.identity, age_identities=None)
        slot_lsn = ready_slot(server, connection)
        wanted = candidates(archive, history, slot_lsn, server.segment_bytes)
        start = plan_start(
            archive,
            history,
            flush_lsn=system.flush_lsn,
            slot_lsn=slot_lsn,
            segment_bytes=server.segment_bytes,
            available=server.stored_segments([one.name for one in wanted]),
        )
        self.standing.identity = str(server.identity)
        self.standing.server_lsn = system.flush_lsn
        if 1 < start.segment.timeline < system.timeline:
            data = connection.timeline_history(start.segment.timeline)
        return Session(server, archive, start, history, data)

    def _note_start(self, session: Session) -> None:
        start, standing = session.start, self.standing
        if start.gap is not None:
            standing.gap_bytes += start.gap.size_bytes
            standing.gap_at_s = time.time()
            log.error("WAL is lost: neither the server nor the spool has it any more", missing=str(start.gap))
        standing.timeline = start.segment.timeline
        standing.durable_lsn = standing.received_lsn = start.segment.start

    def _store_left_over(
        self, session: Session, connection: ReplicationConnection, writer: WalWriter, lease: HeldLease
    ) -> bool:
        """Store what only the spool still has of WAL that the server has no more; False where that is nothing.

        The last byte of it may be one that a process was killed at, in the middle of a record: the next session, which
        receives that segment again if it can, compares it.
        """
        gap, size = session.start.gap, session.server.segment_bytes
        if gap is None:
            return False
        spooled = {one.segment: one.received for one in self._spool.adopt(size)}
        found = left_over(session.archive, gap, spooled)
        if not found:
            return False
        log.info("what the server has no more is stored from the spool", first=found[0].name, last=found[-1].name)
        self._spool.clear(keep=found)
        [row] = [row for row in session.archive.timelines if row.timeline == found[0].timeline]
        judge = session.judge(found[0])
        for one in self._spool.segments():
            is_stored = one.segment.number in row.segments or one.segment.number in row.unread
            self._spool.begin(one.segment, row.chunks.get(one.segment.number, ()), is_stored=is_stored)
            for offset in range(0, one.received, SCAN_BYTES):
                judge.take(judge.position, one.read_at(offset, min(SCAN_BYTES, one.received - offset)))
        self.standing.timeline, self.standing.durable_lsn = row.timeline, found[0].start
        data = connection.timeline_history(row.timeline) if row.timeline > 1 else b""
        uploader = self._uploader(replace(session, history_data=data), row.timeline, writer, lease)
        uploader.stop()  # once through
        uploader.run()
        if uploader.error is not None:
            raise uploader.error
        if self.standing.fault:
            raise Unreachable(self.standing.fault)
        return True

    def _expect(self, session: Session, segment: Segment) -> None:
        """Empty the spool, and note what is stored of the segment that is received again."""
        self._spool.clear()
        row = next((one for one in session.archive.timelines if one.timeline == segment.timeline), None)
        if row is not None:
            is_stored = segment.number in row.segments or segment.number in row.unread
            self._spool.begin(segment, row.chunks.get(segment.number, ()), is_stored=is_stored)

    def _receive_on(self, conninfo: str, session: Session, uploader: Uploader) -> None:
        """Receive on other connections until everything that has arrived is stored, or the uploader ends."""
        while not self._is_all_stored(uploader):
            for segment in self._spool.go_on_with():
                try:
                    with connect_replication(conninfo, application_name=APPLICATION_NAME) as connection:
                        slot = slot_to_stream_from(connection, self.standing.durable_lsn)
                        stream = connection.stream(slot, segment.start, segment.timeline)
                        self._receive(stream, session, segment, uploader, until_stored=True)
                    break
                except SynapseOpsError as cut:
                    self.standing.server = ""
                    words = f"{cut.message} {cut.detail}"
                    log.warning("receiving WAL was interrupted while the store is away", fault=words)

    def _is_all_stored(self, uploader: Uploader) -> bool:
        """Wait a moment until it is, or nothing more will be."""
        deadline_s = time.monotonic() + RECONNECT_S
        while uploader.is_alive() and not self._is_done() and self.standing.durable_lsn < self.standing.received_lsn:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            select.select([self._wake_out], [], [], left_s)
            self._take_wakes()
        return True

    def _receive(
        self,
        stream: WalStream,
        session: Session,
        segment: Segment,
        uploader: Uploader | LeaseTaking,
        *,
        until_stored: bool = False,
    ) -> None:
        """Spool what comes, from a segment's first byte on. until_stored: end once all that has arrived is stored."""
        server, standing = session.server, self.standing
        judge = session.judge(segment)
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
                uploader.arrived()
                standing.received_lsn = max(standing.received_lsn, judge.position)
                standing.server_lsn = max(message.server_lsn, judge.position)
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
            standing.note_waiting(standing.received_lsn)
            if until_stored and standing.durable_lsn >= standing.received_lsn:
                return

    def _take_wakes(self) -> None:
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            return
