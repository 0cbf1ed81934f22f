"""Snapshots of a Qdrant server: created, listed, downloaded, deleted, and recovered from an upload.

Never: `priority=replica`, which with another active replica stops the consensus of every node; a recovery without a
checksum, because a flipped byte is otherwise accepted. A snapshot is one node's: ask each node for its own.
The server names snapshots by the second, so that two of one collection within a second share a name: one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from synapse_ops.errors import ChecksumMismatch, ConfigError
from synapse_ops.systems.qdrant.http import QdrantHttp, QdrantRefused, segment

PIECE_BYTES = 1024 * 1024
SILENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """A snapshot file on the server. checksum: sha256 in hex, None for an uploaded file and for one kept in S3."""

    name: str
    size_bytes: int
    created_at: datetime | None
    checksum: str | None

    @staticmethod
    def of(answer: dict[str, Any]) -> ServerSnapshot:
        made = answer.get("creation_time")
        at = datetime.fromisoformat(made).replace(tzinfo=UTC) if made else None
        return ServerSnapshot(str(answer["name"]), int(answer["size"]), at, answer.get("checksum"))


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes on their way. size_bytes: None for a stream, which has no length; pieces: read once, in order."""

    size_bytes: int | None
    pieces: Iterator[bytes]


class QdrantSnapshots(QdrantHttp):
    """The calls on snapshots of one shard."""

    def create_shard_snapshot(self, collection: str, shard: int, *, wait: bool = True) -> ServerSnapshot | None:
        """Have one made, without a limit of time: the server has none, and a client that leaves does not cancel it.

        wait=False returns None at once; the snapshot is there when the listing shows one more.
        """
        return self._create(_shard(collection, shard), wait)

    def list_shard_snapshots(self, collection: str, shard: int) -> tuple[ServerSnapshot, ...]:
        """Return the finished ones of this node, by name; a partial one is never among them."""
        return self._list(_shard(collection, shard))

    def delete_shard_snapshot(self, collection: str, shard: int, name: str) -> bool:
        """Delete one; False when it is not there."""
        return self._delete(_shard(collection, shard), name)

    @contextmanager
    def download_shard_snapshot(self, collection: str, shard: int, name: str) -> Iterator[Download]:
        """Yield its bytes. Raises IntegrityError when fewer arrive than were announced."""
        with self._download(f"{_shard(collection, shard)}/{segment(name)}") as download:
            yield download

    def read_shard_snapshot_range(self, collection: str, shard: int, name: str, start: int, size: int) -> bytes:
        """Return at most `size` bytes from `start`; from a server that knows no ranges, those at the beginning."""
        path = f"{_shard(collection, shard)}/{segment(name)}"
        with self.stream(path, silence_s=SILENCE_S, byte_range=(start, start + size - 1)) as response:
            found = b""
            for piece in response.iter_bytes(size):
                found += piece
                if len(found) >= size:
                    break
        return found[:size]

    @contextmanager
    def stream_shard_snapshot(self, collection: str, shard: int) -> Iterator[Download]:
        """Yield a snapshot made on the way, which needs no disk on the server; slower than one that is stored first.

        It has no length and no checksum: that it is whole is known only by opening it.
        """
        with self._download(f"/collections/{segment(collection)}/shards/{shard}/snapshot") as download:
            yield download

    def recover_shard(
        self, collection: str, shard: int, file: Path | IO[bytes], *, checksum: str, name: str = "recover.snapshot"
    ) -> None:
        """Replace one shard of an existing collection by an uploaded shard snapshot.

        The file must be of this very shard: another shard's is taken, and the count is silently wrong. checksum: sha256
        in hex. Raises ChecksumMismatch.
        """
        self._recover(_shard(collection, shard), file, checksum, name)

    def _create(self, place: str, wait: bool) -> ServerSnapshot | None:
        made: ServerSnapshot | None = self.call(
            "POST",
            place,
            params={"wait": "true" if wait else "false"},
            has_limit=False,
            read=lambda found: ServerSnapshot.of(found) if found else None,
        )
        return made

    def _list(self, place: str) -> tuple[ServerSnapshot, ...]:
        found = self.call("GET", place, read=lambda rows: [ServerSnapshot.of(row) for row in rows])
        return tuple(sorted(found, key=lambda snapshot: snapshot.name))

    def _delete(self, place: str, name: str) -> bool:
        try:
            self.call("DELETE", f"{place}/{segment(name)}", params={"wait": "true"})
        except QdrantRefused as refused:
            if refused.is_missing:
                return False
            raise
        return True

    @contextmanager
    def _download(self, path: str) -> Iterator[Download]:
        with self.stream(path, silence_s=SILENCE_S) as response:
            length = response.headers.get("content-length")
            yield Download(int(length) if length else None, response.iter_bytes(PIECE_BYTES))

    def _recover(self, place: str, file: Path | IO[bytes], checksum: str, name: str) -> None:
        if re.fullmatch(r"[0-9a-f]{64}", checksum) is None:
            raise ConfigError(f'a checksum is 64 hexadecimal digits, found "{checksum}"')
        if isinstance(file, Path):
            with file.open("rb") as opened:
                self._recover(place, opened, checksum, name)
            return
        params = {"wait": "true", "priority": "snapshot", "checksum": checksum}
        upload = {"snapshot": (name, file, "application/octet-stream")}
        try:
            self.call("POST", f"{place}/upload", params=params, files=upload, has_limit=False)
        except QdrantRefused as refused:
            if refused.status == 400 and "hecksum mismatch" in refused.stderr_tail:
                raise ChecksumMismatch(
                    f"the snapshot sent to {self.url} did not arrive as sha256 {checksum}", detail=refused.stderr_tail
                ) from refused
            raise


def _shard(collection: str, shard: int) -> str:
    return f"/collections/{segment(collection)}/shards/{shard}/snapshots"
