"""The calls on snapshots of a whole collection: part of the server's contract, and not used by the product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from synapse_ops.systems.qdrant.server import Download, QdrantServer, ServerSnapshot


class ContractClient(QdrantServer):
    """One node of Qdrant, asked for snapshots of collections too."""

    def create_collection_snapshot(self, collection: str) -> ServerSnapshot | None:
        return self._create(_place(collection), wait=True)

    def list_collection_snapshots(self, collection: str) -> tuple[ServerSnapshot, ...]:
        return self._list(_place(collection))

    def delete_collection_snapshot(self, collection: str, name: str) -> bool:
        return self._delete(_place(collection), name)

    @contextmanager
    def download_collection_snapshot(self, collection: str, name: str) -> Iterator[Download]:
        with self._download(f"{_place(collection)}/{name}") as download:
            yield download

    def recover_collection(
        self, collection: str, file: IO[bytes], *, checksum: str, name: str = "recover.snapshot"
    ) -> None:
        """Make a collection, or replace its data; the upload stays on the server under `name`, listed."""
        self._recover(_place(collection), file, checksum, name)


def _place(collection: str) -> str:
    return f"/collections/{collection}/snapshots"
