"""A stand-in for a provisioner of volumes: each claim is bound to a folder of the host, which every user may write.

Nothing limits a folder to the size of its claim, and `ReadWriteOncePod` is enforced by the scheduler alone.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.control_plane import DEFAULT_CLASS, Object

_POLL_S = 0.3


@dataclass(frozen=True)
class Volumes:
    api: httpx.Client
    folder: Path

    def make(self, claim: Object) -> None:
        """Make a folder, and the volume that is bound to a claim."""
        metadata = claim["metadata"]
        name = f"of-{metadata['uid']}"
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        volume: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                "accessModes": claim["spec"]["accessModes"],
                "storageClassName": claim["spec"]["storageClassName"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {key: metadata[key] for key in ("namespace", "name", "uid")},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        }
        answer = self.api.post("/api/v1/persistentvolumes", json=volume)
        assert answer.status_code in (201, 409), answer.text

    def remove(self, volume: Object) -> None:
        """Remove what a claim that has gone has left."""
        name = volume["metadata"]["name"]
        self.api.delete(f"/api/v1/persistentvolumes/{name}").raise_for_status()
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def see(self) -> None:
        """Make volumes for pending claims, and remove those whose claim was deleted."""
        for claim in self._list("persistentvolumeclaims"):
            if claim["status"].get("phase") == "Pending" and claim["spec"].get("storageClassName") == DEFAULT_CLASS:
                self.make(claim)
        for volume in self._list("persistentvolumes"):
            if volume["status"].get("phase") == "Released" and volume["metadata"]["name"].startswith("of-"):
                self.remove(volume)

    def folder_of(self, claim: Object) -> Path:
        return self.folder / f"of-{claim['metadata']['uid']}"

    def _list(self, kind: str) -> list[Object]:
        return list(self.api.get(f"/api/v1/{kind}").raise_for_status().json()["items"])


@contextmanager
def making_volumes(api: httpx.Client, folder: Path) -> Iterator[Volumes]:
    """Look after claims while the block runs."""
    volumes, ended = Volumes(api, folder), threading.Event()

    def look() -> None:
        while not ended.wait(_POLL_S):
            try:
                volumes.see()
            except httpx.HTTPError:  # the API server is asked again
                continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield volumes
    finally:
        ended.set()
        thread.join(10)
