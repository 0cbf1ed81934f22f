"""One collection: its folder, its engine, and its writes one after the other.

    <folder>/config.json, payload_index.json, shard_key_mapping.json, version.info, 0/ (the shard)

Invariant: an answered write is in the engine's log, so a kill loses none; the log is emptied by `flush`. Reads take
no lock: they hold the engine that was there when they began, while a recovery puts another in its place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from synapse_ops.local.qdrant_server.answers import Fault, WrongInput
from synapse_ops.local.qdrant_server.configuration import engine_config, vector_names
from synapse_ops.local.qdrant_server.indexes import index_operation
from synapse_ops.systems.host.processes import START_TIMEOUT_S

STORAGE_VERSION = "0.4.2"  # of a real server's collections, 1.18
POINTS_AT_ONCE = 500  # of one entry in the log: replaying a larger one would take hundreds of MiB
CONFIG_FILES = ("version.info", "config.json", "shard_key_mapping.json", "payload_index.json")


class Collection:
    """Open for as long as the process lives. Made by `create` or from a folder that `create` or a snapshot made."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.lock = threading.RLock()
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.indexes: dict[str, Any] = read_json(folder / "payload_index.json")["schema"]
        self.operations = 0
        self._is_dirty = False
        self._engine = _load(self.shard)
        self._make_indexes()

    @staticmethod
    def create(folder: Path, config: Mapping[str, Any], peer_id: int) -> None:
        """Make the folder of an empty collection."""
        (folder / "0").mkdir(parents=True)
        write_json(folder / "config.json", {**config, "uuid": None})
        write_json(folder / "payload_index.json", {"schema": {}})
        write_json(folder / "shard_key_mapping.json", [])
        (folder / "version.info").write_text(STORAGE_VERSION)
        write_json(folder / "0" / "edge_config.json", engine_config(config))
        write_shard_state(folder / "0", peer_id)

    @property
    def shard(self) -> Path:
        return self.folder / "0"

    @property
    def engine(self) -> Any:
        return self._engine

    def read(self, work: Callable[[Any], Any]) -> Any:
        """Send the engine a request. Raises WrongInput or Fault with its message."""
        try:
            return work(self._engine)
        except (ValueError, TypeError, KeyError) as error:
            raise WrongInput(str(error)) from error
        except Fault:
            raise
        except Exception as error:
            raise _fault_of(error) from error

    def write(self, make: Callable[[Any], Any]) -> dict[str, Any]:
        """Apply an update. make: the engine's module -> operation. Returns Qdrant's own answer to an update."""
        import qdrant_edge

        with self.lock:
            self._is_dirty = True
            self.read(lambda engine: engine.update(make(qdrant_edge.UpdateOperation)))
            self.operations += 1
            return {"operation_id": self.operations, "status": "completed"}

    def upsert(self, points: list[Any], **options: Any) -> dict[str, Any]:
        """Write points; an error of one is reported for it, and none after it is written."""
        answer = {"operation_id": self.operations, "status": "completed"}
        for begin in range(0, len(points), POINTS_AT_ONCE):
            answer = self._upsert(points[begin : begin + POINTS_AT_ONCE], options)
        return answer

    def _upsert(self, points: list[Any], options: Mapping[str, Any]) -> dict[str, Any]:
        return self.write(lambda operation: operation.upsert_points(points, **options))

    def flush(self) -> None:
        """Bring everything into the segments and empty the log. Cheap when nothing was written."""
        with self.lock:
            if self._is_dirty:
                self._engine.flush()
                self._is_dirty = False

    def count(self) -> int:
        import qdrant_edge

        return int(self.read(lambda engine: engine.count(qdrant_edge.CountRequest(exact=True))))

    def change_config(self, config: Mapping[str, Any]) -> None:
        with self.lock:
            write_json(self.folder / "config.json", dict(config))
            self.config = dict(config)

    def set_index(self, field: str, schema: Any) -> dict[str, Any]:
        """Make a payload index. schema: a type's name, or an object with type and parameters."""
        answer = self.write(lambda operation: index_operation(operation, field, schema))
        with self.lock:
            self._write_indexes({**self.indexes, field: schema})
        return answer

    def delete_index(self, field: str) -> dict[str, Any]:
        answer = self.write(lambda operation: operation.delete_field_index(field))
        with self.lock:
            self._write_indexes({name: schema for name, schema in self.indexes.items() if name != field})
        return answer

    def _write_indexes(self, indexes: dict[str, Any]) -> None:
        write_json(self.folder / "payload_index.json", {"schema": indexes})
        self.indexes = indexes

    def _make_indexes(self) -> None:
        """Make the indexes that are to be and are not: after a recovery, or a kill between the two steps."""
        there = self._engine.info().payload_schema
        for field, schema in self.indexes.items():
            if field not in there:
                self.write(partial(index_operation, field=field, schema=schema))

    def info(self) -> dict[str, Any]:
        """Return the answer to GET /collections/<name>."""
        found = self._engine.info()
        schema = {field: self._index_info(field, found.payload_schema.get(field)) for field in self.indexes}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": found.indexed_vectors_count,
            "points_count": found.points_count,
            "segments_count": found.segments_count,
            "config": {key: value for key, value in self.config.items() if key != "uuid"},
            "payload_schema": schema,
            "update_queue": {"length": 0},
        }

    def _index_info(self, field: str, found: Any) -> dict[str, Any]:
        schema = self.indexes[field]
        info: dict[str, Any] = {"data_type": schema if isinstance(schema, str) else schema["type"]}
        if not isinstance(schema, str):
            info["params"] = schema
        return info | {"points": found.points if found is not None else 0}

    def vector_of(self, number: int | str, using: str) -> Any:
        """Return a stored vector. Raises WrongInput's neighbour 404 as a real server does."""
        from synapse_ops.local.qdrant_server.answers import Missing

        found = self.read(lambda engine: engine.retrieve([number], False, True))
        vector = found[0].vector if found else None
        if isinstance(vector, Mapping):
            vector = vector.get(using)
        if vector is None:
            raise Missing(f"No point with id {number} found")
        return vector

    def replace_shard(self, made: Path, old: Path, indexes: Mapping[str, Any]) -> None:
        """Put another shard in place of the present one, which moves to `old`."""
        with self.lock:
            self._engine.close()
            self.shard.rename(old)
            made.rename(self.shard)
            self._write_indexes({**self.indexes, **indexes})
            self._engine = _load(self.shard)
            self._is_dirty = True
            self._make_indexes()

    def close(self) -> None:
        with self.lock:
            self.flush()
            self._engine.close()

    def vector_counts(self) -> dict[str, int]:
        dense, sparse = vector_names(self.config)
        points = self._engine.info().points_count
        return dict.fromkeys([*dense, *sparse], points)


def _load(shard: Path) -> Any:
    import qdrant_edge

    return qdrant_edge.EdgeShard.load(str(shard))


def _fault_of(error: Exception) -> Fault:
    text = str(error)
    return Fault(text.removeprefix("Service runtime error: ")) if text.startswith("Service") else WrongInput(text)


def check_shard(shard: Path) -> None:
    """Open a foreign shard in a separate process: a damaged one may end the process that opens it.

    Raises Fault with what the engine said, or that it died.
    """
    argv = [sys.executable, "-m", "synapse_ops.local.qdrant_server.check", str(shard.absolute())]
    try:
        done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as late:
        raise Fault(f"the snapshot's data could not be opened within {START_TIMEOUT_S:g} s") from late
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Fault(f"the snapshot's data cannot be opened: status {done.returncode}: {last}")


def write_shard_state(shard: Path, peer_id: int) -> None:
    """Write what a real server keeps beside a shard's segments."""
    state = {"is_local": True, "this_peer_id": peer_id, "peers": {str(peer_id): "Active"}}
    write_json(shard / "replica_state.json", state)
    write_json(shard / "shard_config.json", {"type": "ReplicaSet"})


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    making = path.with_name(path.name + ".making")
    making.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    making.replace(path)
