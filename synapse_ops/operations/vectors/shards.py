"""One shard's snapshot from a node into the repository: made on the node, read, sent, and removed from the node.

The node names a snapshot by the second and never lists a partial one. The request has no time limit; beside it the
listing is polled, so that a vanished node or a proxy that cuts the connection ends the wait.
Where the node's disk is short a shard is streamed instead: made on the way, without a checksum of the node's own.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.snapshot_record import ShardRecord
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.errors import ChecksumMismatch, Unreachable
from synapse_ops.operations.backup.writer import COPY_BYTES, BackupWriter
from synapse_ops.systems.qdrant.server import Download, QdrantRefused, QdrantServer, ServerSnapshot

POLL_S = 2.0
LOST_AFTER_S = 30.0  # a node that answers nothing for so long will not finish either
GONE_AFTER_S = 10.0  # the request has ended, the node answers, and no new snapshot appears: there will be none
PAYS_BELOW = 0.9  # stored by plain size; zstd:1 takes less time than the tenth that is sent more
SAMPLE_PIECES, SAMPLE_PIECE_BYTES = 16, 256 * 1024
ZSTD_LEVEL = 1
_NO_SPACE = ("no space left", "not enough space", "enospc", "disk quota")

Method = Literal["stored", "streamed"]


@dataclass(frozen=True)
class CutShard:
    """A shard whose snapshot exists on a node, or will be streamed from it (`made` is None)."""

    shard_id: int
    peer_id: int
    server: QdrantServer
    collection: str
    made: ServerSnapshot | None
    created_at: datetime
    creation_s: float
    points_before: int | None

    @property
    def method(self) -> Method:
        return "streamed" if self.made is None else "stored"


def create_on_node(
    server: QdrantServer, collection: str, shard: int, *, lost_after_s: float = LOST_AFTER_S
) -> ServerSnapshot:
    """Have a node make a shard's snapshot, and return it once it is finished.

    lost_after_s: seconds without any answer after which the node is given up. The request then goes on in a thread of
    its own, which keeps neither the caller nor the process waiting: a node without power never ends it.
    Raises Unreachable when the node is lost meanwhile, QdrantRefused for what it answers.
    """
    before = {one.name for one in server.list_shard_snapshots(collection, shard)}
    asked: Future[ServerSnapshot | None] = Future()

    def ask() -> None:
        try:
            asked.set_result(server.create_shard_snapshot(collection, shard))
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            asked.set_exception(error)

    threading.Thread(target=ask, name="snapshot", daemon=True).start()
    return _await(asked, server, collection, shard, before, lost_after_s)


def _await(
    asked: Future[ServerSnapshot | None],
    server: QdrantServer,
    collection: str,
    shard: int,
    before: set[str],
    lost_after_s: float,
) -> ServerSnapshot:
    answered_at = time.monotonic()
    ended_at: float | None = None
    while True:
        if ended_at is None:
            try:
                made = asked.result(timeout=POLL_S)
            except StillRunning:
                pass
            except Unreachable:
                ended_at = time.monotonic()  # the connection was cut, which does not cancel it
            else:
                if made is not None:
                    return made
                ended_at = time.monotonic()
        else:
            time.sleep(POLL_S / 4)
        try:
            found = [one for one in server.list_shard_snapshots(collection, shard) if one.name not in before]
            answered_at = time.monotonic()
        except Unreachable:
            if time.monotonic() - answered_at > (lost_after_s if ended_at is None else GONE_AFTER_S):
                raise
            continue
        if found:
            return found[-1]
        if ended_at is not None and time.monotonic() - ended_at > GONE_AFTER_S and not _is_running(server, collection):
            raise Unreachable(f"{server.url} aborted the snapshot of shard {shard} of {collection}")


def _is_running(server: QdrantServer, collection: str) -> bool:
    """Return whether the node reports that it is making a snapshot of the collection."""
    wanted = f'snapshot_creation_running{{id="{collection}"}}'
    lines = (line.rsplit(" ", 1) for line in server.metrics().splitlines() if line.startswith(wanted))
    return any(float(value) > 0 for _, value in lines)


def is_out_of_space(refused: QdrantRefused) -> bool:
    """Return whether a node could not make a snapshot for lack of space on its disk."""
    return refused.status >= 500 and any(words in refused.stderr_tail.lower() for words in _NO_SPACE)


def send_shard(
    writer: BackupWriter, cut: CutShard, *, may_compress: bool, progress: ReportProgress
) -> tuple[ObjectRecord, ShardRecord]:
    """Read a shard's snapshot from its node into the repository, and return both records.

    Raises ChecksumMismatch when the bytes that came are not those that the node announced; then nothing was stored.
    """
    with _opened(cut) as download:
        ratio, pieces = _sampled(cut, download) if may_compress else (None, download.pieces)
        compresses = ratio is not None and ratio < PAYS_BELOW
        is_plain = not compresses and not writer.recipients  # then the stored bytes are the node's own
        stage = f"sending shard {cut.shard_id} of {cut.collection}"
        raw = _Raw(pieces, stage, download.size_bytes, progress, hashes=not is_plain)
        name = f"shard-{cut.shard_id}-of-{cut.peer_id}.snapshot" + (".zst" if compresses else "")

        def check() -> None:
            if not is_plain:
                _check(cut, raw.count, raw.sha256)

        stored = writer.write_stream(name, _compressed(raw) if compresses else raw, before_complete=check)
    sha256 = stored.sha256 if is_plain else raw.sha256
    _check(cut, raw.count, sha256)
    record = ShardRecord(
        shard_id=cut.shard_id,
        peer_id=str(cut.peer_id),
        object_name=stored.name,
        method=cut.method,
        snapshot_bytes=raw.count,
        snapshot_sha256=sha256,
        server_checksum=cut.made.checksum if cut.made is not None else None,
        compression="zstd:1" if compresses else "none",
        compression_ratio=round((stored.plain_size_bytes or 0) / raw.count, 4) if raw.count else 1.0,
        sample_ratio=ratio,
        points_before=cut.points_before,
        created_at=cut.created_at,
        creation_s=round(cut.creation_s, 3),
    )
    return stored, record


@contextmanager
def _opened(cut: CutShard) -> Iterator[Download]:
    if cut.made is None:
        with cut.server.stream_shard_snapshot(cut.collection, cut.shard_id) as download:
            yield download
    else:
        with cut.server.download_shard_snapshot(cut.collection, cut.shard_id, cut.made.name) as download:
            yield download


def _check(cut: CutShard, size_bytes: int, sha256: str) -> None:
    made = cut.made
    if made is None:
        return
    wanted = (made.size_bytes, made.checksum or sha256)
    if (size_bytes, sha256) != wanted:
        raise ChecksumMismatch(
            f"snapshot {made.name} of {cut.server.url} is not what the node announced: sha256 {sha256},"
            f" announced {made.checksum}",
            detail=f"{size_bytes} bytes, announced {made.size_bytes}",
            hint="Is the node's disk, or the network between, damaged? The snapshot is not listed.",
        )


def _sampled(cut: CutShard, download: Download) -> tuple[float, Iterator[bytes]]:
    """Return what part of a sample remains after compression, and the pieces to read, the sampled ones included.

    A stored snapshot is sampled all over; a streamed one at its head, which is all there is of it yet.
    """
    compress = _compressor(threads=0).compress
    if cut.made is not None:
        size = cut.made.size_bytes
        step = max(1, (size - SAMPLE_PIECE_BYTES) // SAMPLE_PIECES)
        starts = range(0, max(1, size - SAMPLE_PIECE_BYTES), step)
        sample = [
            cut.server.read_shard_snapshot_range(cut.collection, cut.shard_id, cut.made.name, start, SAMPLE_PIECE_BYTES)
            for start in list(starts)[:SAMPLE_PIECES]
        ]
        pieces = download.pieces
    else:
        head: list[bytes] = []
        for piece in download.pieces:
            head.append(piece)
            if sum(map(len, head)) >= SAMPLE_PIECES * SAMPLE_PIECE_BYTES:
                break
        sample, pieces = head, _chained(head, download.pieces)
    plain = sum(map(len, sample))
    return round(sum(len(compress(piece)) for piece in sample) / max(1, plain), 4), pieces


def _chained(head: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    while head:
        yield head.pop(0)
    yield from rest


class _Raw:
    """The node's archive as a readable stream, counted and hashed as it passes."""

    def __init__(
        self, pieces: Iterator[bytes], stage: str, total: int | None, progress: ReportProgress, *, hashes: bool
    ) -> None:
        self._pieces = pieces
        self._rest = b""
        self._sha256 = hashlib.sha256()
        self._report: Callable[[int], None] = lambda done: progress(Progress(stage, done, total))
        self._hashes = hashes
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
            self.count += len(piece)
            if self._hashes:
                self._sha256.update(piece)
            self._report(self.count)
        if size < 0 or len(self._rest) <= size:
            taken, self._rest = self._rest, b""
        else:
            taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _compressor(*, threads: int) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, threads=threads)


def _compressed(raw: _Raw) -> Any:
    return _compressor(threads=2).stream_reader(raw, read_size=COPY_BYTES, closefd=False)
