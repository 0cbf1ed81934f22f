"""A stand-in for the registries of images: it serves the images that tests gave it, under any registry's name.

A node pulls each rendered image (`imagePullPolicy: Always`), and here it asks this server for all of them. It is the
part of the OCI distribution specification that pulls, over HTTP, without compression and without authentication.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_MANIFEST, _CONFIG, _LAYER = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Registry:
    """folder: a file for each digest. tags: the digest of the manifest by `<repository>:<tag>`."""

    folder: Path
    address: str
    tags: dict[str, str] = field(default_factory=dict)

    def take(self, archive: Path) -> list[str]:
        """Keep the images of an archive of `docker save`, and return their names.

        A name without a registry is Docker Hub's, as a node reads it: `redis:8` is `library/redis:8`.
        """
        names: list[str] = []
        kept: dict[str, dict[str, Any]] = {}  # a layer of many images is in the archive once
        with tarfile.open(archive) as tar:
            for image in json.loads(_read(tar, "manifest.json")):
                config = self._keep(_read(tar, image["Config"]))
                for name in image["Layers"]:
                    kept[name] = kept[name] if name in kept else self._keep_member(tar, name)
                manifest = {
                    "schemaVersion": 2,
                    "mediaType": _MANIFEST,
                    "config": {"mediaType": _CONFIG} | config,
                    "layers": [{"mediaType": _LAYER} | kept[name] for name in image["Layers"]],
                }
                digest = self._keep(json.dumps(manifest).encode())["digest"]
                for name in image["RepoTags"] or ():
                    self.tags[_path_of(name)] = digest
                    names.append(name)
        return names

    def find(self, path: str) -> tuple[Path, str] | None:
        """Return the file and the media type of what a path of the API names; None: there is no such thing."""
        parts = path.partition("?")[0].removeprefix("/v2/").split("/")
        if len(parts) < 3:
            return None
        repository, kind, reference = "/".join(parts[:-2]), parts[-2], parts[-1]
        digest = self.tags.get(f"{repository}:{reference}", reference)
        file = self.folder / digest.replace(":", "-")
        if kind not in ("manifests", "blobs") or not digest.startswith("sha256:") or not file.is_file():
            return None
        return file, _MANIFEST if kind == "manifests" else "application/octet-stream"

    def _keep(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / f"sha256-{digest}").write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def _keep_member(self, tar: tarfile.TarFile, name: str) -> dict[str, Any]:
        source = tar.extractfile(name)
        assert source is not None, name
        making, digest, size = self.folder / "making", hashlib.sha256(), 0
        with source, making.open("wb") as file:
            while data := source.read(_CHUNK):
                digest.update(data)
                size += file.write(data)
        making.rename(self.folder / f"sha256-{digest.hexdigest()}")
        return {"digest": f"sha256:{digest.hexdigest()}", "size": size}


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    source = tar.extractfile(name)
    assert source is not None, name
    return source.read()


def _path_of(name: str) -> str:
    """Return repository and tag without the registry: that is whom a node asks, and here it is always we."""
    first, slash, rest = name.partition("/")
    if not slash:
        return f"library/{name}"
    return rest if "." in first or ":" in first or first == "localhost" else name


class _Answer(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.registry.find(self.path)
        if self.path.rstrip("/") == "/v2":
            self._head(HTTPStatus.OK, "application/json", 0)
        elif found is None:
            self._head(HTTPStatus.NOT_FOUND, "application/json", 0)
        else:
            file, kind = found
            self._head(HTTPStatus.OK, kind, file.stat().st_size, file.name.replace("-", ":"))
            if self.command == "GET":
                with file.open("rb") as source:
                    shutil.copyfileobj(source, self.wfile, _CHUNK)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _head(self, status: HTTPStatus, kind: str, size: int, digest: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: containerd's log says what was asked."""


@contextmanager
def serving_registry(folder: Path, host: str) -> Iterator[Registry]:
    """Serve on a port of the host's choice while the block runs."""
    folder.mkdir(parents=True)
    handler = type("Answer", (_Answer,), {})
    with ThreadingHTTPServer((host, 0), handler) as server:
        registry = Registry(folder, f"http://{host}:{server.server_port}")
        handler.registry = registry  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield registry
        finally:
            server.shutdown()
