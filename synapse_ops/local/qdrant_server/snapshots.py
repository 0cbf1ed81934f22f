"""Snapshots of a store: made while writes of that collection wait, listed, and recovered from an archive.

    snapshots/<collection>/<name>.snapshot, <name>.snapshot.checksum
    snapshots/<collection>/shards/0/...

Before a foreign archive replaces anything, its data is opened in a separate process.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synapse_ops.local.qdrant_server import archive
from synapse_ops.local.qdrant_server.answers import BadRequest, Fault, Missing, NotSpoken, WrongInput
from synapse_ops.local.qdrant_server.collection import (
    CONFIG_FILES,
    Collection,
    check_shard,
    read_json,
    write_shard_state,
)
from synapse_ops.local.qdrant_server.configuration import differences
from synapse_ops.local.qdrant_server.store import Store


class Snapshots:
    """The snapshots of one store. running, recovering, created: by collection, for the metrics."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.running: Counter[str] = Counter()
        self.recovering: Counter[str] = Counter()
        self.created: Counter[str] = Counter()
        self._lock = threading.Lock()

    def folder(self, name: str, shard: str | None) -> Path:
        """Return where snapshots lie. shard: its number in a path, None for the collection. Raises Missing."""
        collection = self.store.get(name)
        place = self.store.data / "snapshots" / collection.name
        if shard is None:
            return place
        if shard != "0":
            raise Missing(f"shard {shard} not found")
        return place / "shards" / "0"

    def listing(self, name: str, shard: str | None) -> list[dict[str, Any]]:
        folder = self.folder(name, shard)
        if not folder.is_dir():
            return []
        return [_described(path) for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".checksum"]

    def find(self, name: str, shard: str | None, snapshot: str) -> Path:
        path = self.folder(name, shard) / snapshot
        if "/" in snapshot or snapshot in ("", ".", "..") or not path.is_file():
            raise Missing(f"Snapshot {snapshot} not found")
        return path

    def delete(self, name: str, shard: str | None, snapshot: str) -> bool:
        path = self.find(name, shard, snapshot)
        path.with_name(path.name + ".checksum").unlink(missing_ok=True)
        path.unlink()
        return True

    def create(self, name: str, shard: str | None) -> dict[str, Any]:
        """Make one and return its description. Names have a resolution of one second, as on a real server."""
        collection, folder = self.store.get(name), self.folder(name, shard)
        what = "shard-0" if shard is not None else str(self.store.peer_id)
        with self._counted(self.running, collection.name), self.store.scratch() as scratch:
            self.created[collection.name] += 1
            at = datetime.now(UTC).strftime("%Y-%m-%d-%H-%M-%S")
            made = scratch / f"{collection.name}-{what}-{at}.snapshot"
            self.write(collection, made, scratch, is_shard=shard is not None)
            checksum = sha256_of(made)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{made.name}.checksum").write_text(checksum)
            made.rename(folder / made.name)
        return _described(folder / made.name)

    def write(self, collection: Collection, target: Path, scratch: Path, *, is_shard: bool) -> None:
        """Write an archive of a collection, or of its one shard; it holds every write answered before."""
        with archive.open_to_write(target) as out, collection.lock:
            collection.flush()
            archive.write_shard(out, collection.shard, "" if is_shard else "0/", scratch)
            if not is_shard:
                archive.write_files(out, collection.folder, CONFIG_FILES)

    def recover_collection(self, name: str, file: Path) -> None:
        """Make a collection from an archive, or replace the data of an existing one, whose configuration stays."""
        with self._counted(self.recovering, name), self.store.scratch() as scratch:
            made = scratch / "made"
            archive.unpack(file, made)
            config, indexes = _read_config(made)
            existing = self.store.find(name)
            if existing is not None and (why := differences(existing.config, config)):
                raise WrongInput(f"Snapshot is not compatible with existing collection: {why}")
            if config["params"].get("shard_number", 1) != 1:
                raise NotSpoken(f"a snapshot of {config['params']['shard_number']} shards: it keeps one per collection")
            self._check(made / "0")
            if existing is None:
                self.store.adopt(name, made)
            else:
                existing.replace_shard(made / "0", scratch / "old", indexes)

    def recover_shard(self, name: str, file: Path) -> None:
        """Replace the shard of a collection by an archive of a shard."""
        collection = self.store.get(name)
        with self._counted(self.recovering, collection.name), self.store.scratch() as scratch:
            made = scratch / "made"
            archive.unpack(file, made)
            self._check(made)
            _check_vectors(made, collection.config)
            collection.replace_shard(made, scratch / "old", {})

    def _check(self, shard: Path) -> None:
        if not (shard / "segments").is_dir():
            raise Fault(f"Can't restore snapshot in local mode with missing data at shard: {shard}")
        if not (shard / "wal").is_dir():
            raise BadRequest("Invalid snapshot")
        check_shard(shard)
        write_shard_state(shard, self.store.peer_id)

    @contextmanager
    def _counted(self, counter: Counter[str], name: str) -> Iterator[None]:
        with self._lock:
            counter[name] += 1
        try:
            yield
        finally:
            with self._lock:
                counter[name] -= 1


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> dict[str, Any]:
    found = path.stat()
    made = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    described: dict[str, Any] = {"name": path.name, "creation_time": made, "size": found.st_size}
    checksum = path.with_name(path.name + ".checksum")
    return described | ({"checksum": checksum.read_text()} if checksum.is_file() else {})


def _read_config(made: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config = read_json(made / "config.json")
        if "params" not in config:
            raise Fault("Json error: missing field `params`")
        indexes = read_json(made / "payload_index.json")["schema"] if (made / "payload_index.json").exists() else {}
    except FileNotFoundError as error:
        raise Fault(
            f"File IO error: failed to open file `{error.filename}`: No such file or directory (os error 2)"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise Fault(f"Json error: {error}") from error
    return config, indexes


def _check_vectors(shard: Path, config: Mapping[str, Any]) -> None:
    """Refuse a shard whose vectors are not those of the collection, as its segments say."""
    vectors = config["params"].get("vectors") or {}
    wanted = {"": vectors} if "size" in vectors else vectors
    for file in sorted((shard / "segments").glob("*/segment.json")):
        found = read_json(file)["config"].get("vector_data") or {}
        sizes = {name: (entry["size"], entry["distance"]) for name, entry in found.items()}
        if sizes != {name: (entry["size"], entry["distance"]) for name, entry in wanted.items()}:
            raise WrongInput(f"Snapshot is not compatible with existing collection: its vectors are {sizes}")
