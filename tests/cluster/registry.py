"""A stand-in for the registries of images: it serves the images that tests gave it, under any registry's name.

A node pulls each rendered image (`imagePullPolicy: Always`), and here it asks this server for all of them. It is the
part of the OCI distribution specification that pulls, over HTTP, without compression and without authentication.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_MANIFEST, _CONFIG, _LAYER = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
)
_CHUNK = 1 << 20


class _Blob(NamedTuple):
    """Where the bytes of a digest are: a layer stays in the archive that it came in, which is open."""

    file: BinaryIO
    start: int
    size: int

    def parts(self) -> Iterator[bytes]:
        place, end = self.start, self.start + self.size
        while place < end and (data := os.pread(self.file.fileno(), min(_CHUNK, end - place), place)):
            yield data
            place += len(data)


@dataclass(frozen=True)
class Registry:
    """tags: the digest of the manifest by `<repository>:<tag>`. What is read stays open as long as it is served."""

    address: str
    tags: dict[str, str] = field(default_factory=dict)
    _blobs: dict[str, _Blob] = field(default_factory=dict)
    _opened: ExitStack = field(default_factory=ExitStack)

    def take(self, archive: Path) -> list[str]:
        """Serve the images of an archive of `docker save`, and return their names. The file may then be removed.

        A name without a registry is Docker Hub's, as a node reads it: `redis:8` is `library/redis:8`.
        """
        names: list[str] = []
        kept: dict[str, dict[str, Any]] = {}  # a layer of many images is in the archive once
        file = self._opened.enter_context(archive.open("rb"))
        with tarfile.open(archive) as tar:
            for image in json.loads(_read(tar, "manifest.json")):
                config = self._keep(_read(tar, image["Config"]))
                for name in image["Layers"]:
                    kept[name] = kept[name] if name in kept else self._keep_layer(file, tar, name)
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

    def find(self, path: str) -> tuple[str, _Blob, str] | None:
        """Return the digest, the bytes and the media type of what a path of the API names; None: there is no such."""
        parts = path.partition("?")[0].removeprefix("/v2/").split("/")
        if len(parts) < 3:
            return None
        repository, kind, reference = "/".join(parts[:-2]), parts[-2], parts[-1]
        digest = self.tags.get(f"{repository}:{reference}", reference)
        if kind not in ("manifests", "blobs") or digest not in self._blobs:
            return None
        return digest, self._blobs[digest], _MANIFEST if kind == "manifests" else "application/octet-stream"

    def close(self) -> None:
        self._opened.close()

    def _keep(self, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        file = self._opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - close() does
        file.write(data)
        file.flush()
        self._blobs[digest] = _Blob(file, 0, len(data))
        return {"digest": digest, "size": len(data)}

    def _keep_layer(self, file: BinaryIO, tar: tarfile.TarFile, name: str) -> dict[str, Any]:
        member = tar.getmember(name)
        while member.issym():  # a layer of two images, as older engines write it
            member = tar.getmember(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)))
        source, digest = tar.extractfile(member), hashlib.sha256()
        assert source is not None, name
        while data := source.read(_CHUNK):
            digest.update(data)
        self._blobs[f"sha256:{digest.hexdigest()}"] = _Blob(file, member.offset_data, member.size)
        return {"digest": f"sha256:{digest.hexdigest()}", "size": member.size}


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
            digest, blob, kind = found
            self._head(HTTPStatus.OK, kind, blob.size, digest)
            if self.command == "GET":
                for data in blob.parts():
                    self.wfile.write(data)

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
def serving_registry(host: str) -> Iterator[Registry]:
    """Serve on a port of the host's choice while the block runs."""
    handler = type("Answer", (_Answer,), {})
    with ThreadingHTTPServer((host, 0), handler) as server:
        registry = Registry(f"http://{host}:{server.server_port}")
        handler.registry = registry  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield registry
        finally:
            server.shutdown()
            registry.close()
