"""All that one data folder holds: collections, aliases, and where snapshots lie.

    <data>/lock, peer.json, aliases.json
           collections/<name>/   see collection.py
           snapshots/<name>/     what snapshots.py makes
           tmp/                  unfinished work, emptied at each start

Invariant: a folder under collections/ is whole: made in tmp/ and moved there, moved away before it is removed.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synapse_ops.errors import Refused
from synapse_ops.local.qdrant_server.answers import Conflict, Missing, WrongInput
from synapse_ops.local.qdrant_server.collection import Collection, read_json, write_json
from synapse_ops.local.qdrant_server.configuration import changed_config, check_name, new_config


class Store:
    """Opened by one process at a time. Raises Refused when another one has the folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self._lock_file = (data / "lock").open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"the vector store's folder {data} is in use by another process") from error
        shutil.rmtree(data / "tmp", ignore_errors=True)
        for name in ("collections", "snapshots", "tmp"):
            (data / name).mkdir(exist_ok=True)
        self.peer_id = self._read_or_make_peer()
        self._aliases: dict[str, str] = read_json(data / "aliases.json") if (data / "aliases.json").exists() else {}
        self._lock = threading.RLock()
        self._collections = {
            folder.name: Collection(folder, folder.name) for folder in sorted((data / "collections").iterdir())
        }

    def _read_or_make_peer(self) -> int:
        path = self.data / "peer.json"
        if not path.exists():
            write_json(path, {"peer_id": secrets.randbelow(2**53 - 1) + 1})
        return int(read_json(path)["peer_id"])

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a separate folder, removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.data / "tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._collections)

    def open_collections(self) -> list[Collection]:
        with self._lock:
            return [self._collections[name] for name in sorted(self._collections)]

    def find(self, name: str) -> Collection | None:
        """Return a collection by its name or an alias of it."""
        check_name(name)
        with self._lock:
            return self._collections.get(self._aliases.get(name, name))

    def get(self, name: str) -> Collection:
        found = self.find(name)
        if found is None:
            raise Missing(f"Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: Mapping[str, Any]) -> bool:
        check_name(name)
        with self._lock:
            if name in self._collections:
                raise Conflict(f"Collection `{name}` already exists!")
            if name in self._aliases:
                raise WrongInput(f"Can't create collection with name {name}. Alias with the same name already exists")
            config = new_config(body)
            with self.scratch() as scratch:
                Collection.create(scratch / "made", config, self.peer_id)
                self.adopt(name, scratch / "made")
        return True

    def adopt(self, name: str, made: Path) -> None:
        """Take a finished folder as a collection."""
        with self._lock:
            place = self.data / "collections" / name
            made.rename(place)
            try:
                self._collections[name] = Collection(place, name)
            except BaseException:
                place.rename(made)
                raise

    def change(self, name: str, body: Mapping[str, Any]) -> bool:
        collection = self.get(name)
        collection.change_config(changed_config(collection.config, body))
        return True

    def delete(self, name: str) -> bool:
        """Delete a collection and its aliases; False when it is not there. Its snapshots stay, as on a real server."""
        check_name(name)
        with self._lock:
            collection = self._collections.pop(name, None)
            if collection is None:
                return False
            self._write_aliases({alias: target for alias, target in self._aliases.items() if target != name})
            with collection.lock, self.scratch() as scratch:
                collection.engine.close()
                collection.folder.rename(scratch / "gone")
        return True

    def aliases(self, name: str | None = None) -> list[dict[str, str]]:
        with self._lock:
            listed = sorted(self._aliases.items())
        return [{"alias_name": alias, "collection_name": target} for alias, target in listed if name in (None, target)]

    def change_aliases(self, actions: list[Mapping[str, Any]]) -> bool:
        """Do all of the actions in one step, or none."""
        with self._lock:
            changed = dict(self._aliases)
            for action in actions:
                self._change_alias(changed, action)
            self._write_aliases(changed)
        return True

    def _change_alias(self, aliases: dict[str, str], action: Mapping[str, Any]) -> None:
        if "create_alias" in action:
            target, alias = action["create_alias"]["collection_name"], action["create_alias"]["alias_name"]
            if target not in self._collections:
                raise Missing(f"Collection `{target}` doesn't exist!")
            if alias in self._collections:
                raise Conflict(f"Collection `{alias}` already exists!")
            aliases[alias] = target
        elif "delete_alias" in action:
            aliases.pop(action["delete_alias"]["alias_name"], None)
        elif "rename_alias" in action:
            old, new = action["rename_alias"]["old_alias_name"], action["rename_alias"]["new_alias_name"]
            if old not in aliases:
                raise Missing(f"Alias {old} does not exists!")
            aliases[new] = aliases.pop(old)

    def _write_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self._aliases:
            write_json(self.data / "aliases.json", aliases)
            self._aliases = aliases

    def close(self) -> None:
        """Flush and close everything; the folder is free for another process afterwards."""
        for collection in self.open_collections():
            collection.close()
        self._lock_file.close()
