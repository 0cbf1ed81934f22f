"""Snapshots of collections and of their one shard: made, listed, sent, deleted, recovered."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from synapse_ops.local.qdrant_server.answers import (
    BadChecksum,
    BadRequest,
    Fault,
    Forbidden,
    Invalid,
    NotSpoken,
    WrongInput,
    accepted,
    answer,
    refused,
)
from synapse_ops.local.qdrant_server.configuration import check_name
from synapse_ops.local.qdrant_server.endpoint import ACCEPTED, Call, Server, path_parameters, route
from synapse_ops.local.qdrant_server.multipart import receive_file
from synapse_ops.local.qdrant_server.snapshots import sha256_of

PRIORITIES = ("snapshot", "replica", "no_sync")


def _list(call: Call) -> Any:
    return call.server.snapshots.listing(call.path["name"], call.path.get("shard"))


def _create(call: Call) -> Any:
    name, shard = call.path["name"], call.path.get("shard")
    call.server.snapshots.folder(name, shard)
    return _now_or_later(call, lambda: call.server.snapshots.create(name, shard))


def _delete(call: Call) -> Any:
    return call.server.snapshots.delete(call.path["name"], call.path.get("shard"), call.path["snapshot"])


def _download(call: Call) -> Response:
    path = call.server.snapshots.find(call.path["name"], call.path.get("shard"), call.path["snapshot"])
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def _stream(call: Call) -> Response:
    """Send a shard snapshot without a length, as a real server does, which needs no space on the disk of the data.

    Ours is written first: beside the data, or where that disk is full in the system's directory for temporary files.
    """
    call.server.snapshots.folder(call.path["name"], call.path["shard"])
    try:
        return _stream_from(call, call.store.data / "tmp")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _stream_from(call, None)


def _stream_from(call: Call, folder: Path | None) -> Response:
    collection = call.store.get(call.path["name"])
    scratch = Path(tempfile.mkdtemp(dir=folder))
    made = scratch / f"{collection.name}-shard-0-{time.strftime('%Y-%m-%d-%H-%M-%S', time.gmtime())}.snapshot"
    try:
        call.server.snapshots.write(collection, made, scratch, is_shard=True)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return StreamingResponse(
        _pieces(made),
        media_type="application/octet-stream",
        headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(made.name)}"},
        background=BackgroundTask(shutil.rmtree, scratch, ignore_errors=True),
    )


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            yield piece


def _now_or_later(call: Call, work: Callable[[], Any]) -> Any:
    if call.waits():
        return work()
    threading.Thread(target=_quietly, args=(work,), daemon=True).start()
    return ACCEPTED


def _quietly(work: Callable[[], Any]) -> None:
    try:
        work()
    except Fault as fault:  # no caller waits for it: the error goes to the log
        print(fault, flush=True)


def _full(call: Call) -> Any:
    raise NotSpoken("snapshots of the whole storage")


def _no_full(call: Call) -> list[Any]:
    del call
    return []


def _recover(call: Call) -> Any:
    """Recover from a file of this server's own snapshots folder."""
    body = call.fields()
    _check_options(body.get("priority"), body.get("checksum"))
    place = urlsplit(body["location"])
    if place.scheme in ("http", "https"):
        raise NotSpoken("recovery from a URL; upload the file")
    if place.scheme != "file":
        raise BadRequest(f"URL {body['location']} with scheme {place.scheme} is not supported")
    path = Path(unquote(place.path))
    if not path.is_file():
        raise BadRequest(f'Snapshot file "{path}" does not exist')
    folder = call.store.data / "snapshots"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Forbidden(f'Snapshot file path must be inside the snapshots directory "{folder}"')
    if body.get("checksum") and sha256_of(path) != body["checksum"]:
        raise WrongInput(f"Snapshot checksum mismatch: expected {body['checksum']}, got {sha256_of(path)}")
    return _now_or_later(call, lambda: _recover_file(call.server, call.path, path))


def _recover_file(server: Server, path: dict[str, str], file: Path) -> bool | None:
    if "shard" in path:
        server.snapshots.recover_shard(path["name"], file)
        return None
    server.snapshots.recover_collection(path["name"], file)
    return True


def _check_options(priority: str | None, checksum: str | None) -> None:
    if priority not in (None, *PRIORITIES):
        raise BadRequest(f"unknown variant `{priority}`, expected one of `no_sync`, `snapshot`, `replica`")
    if checksum is not None and re.fullmatch(r"[0-9a-fA-F]{64}", checksum) is None:
        raise Invalid("query parameters", "checksum", "Validation error: invalid_sha256_hash")


async def _upload(request: Request) -> Response:
    """Receive a snapshot and recover it. A collection's stays in the listing, as on a real server."""
    began = time.monotonic()
    server: Server = request.app.state.server
    path, query = path_parameters(request), dict(request.query_params)
    scratch = Path(tempfile.mkdtemp(dir=server.store.data / "tmp"))
    try:
        check_name(path["name"])
        _check_options(query.get("priority"), query.get("checksum"))
        if "shard" in path:
            server.snapshots.folder(path["name"], path["shard"])
        file = await receive_file(request.headers.get("content-type", ""), request.stream(), scratch)
        result = await run_in_threadpool(_recover_upload, Call(server, path, query, None, began), file)
    except Fault as fault:
        return refused(fault, began)
    finally:
        if query.get("wait") != "false":
            shutil.rmtree(scratch, ignore_errors=True)
    return accepted(began) if result is ACCEPTED else answer(result, began)


def _recover_upload(call: Call, file: Path) -> Any:
    wanted = call.query.get("checksum")
    if wanted is not None and (found := sha256_of(file)) != wanted.lower():
        raise BadChecksum(f"expected {found}, actual {wanted}")
    if "shard" not in call.path:
        folder = call.store.data / "snapshots" / call.path["name"]
        folder.mkdir(parents=True, exist_ok=True)
        file = file.rename(folder / file.name)
    return _now_or_later(call, lambda: _recover_file(call.server, call.path, file))


_COLLECTION = "/collections/{name}/snapshots"
_SHARD = "/collections/{name}/shards/{shard}/snapshots"
ROUTES = [
    route("/snapshots", "GET", _no_full),
    route("/snapshots", "POST", _full),
    route("/collections/{name}/shards/{shard}/snapshot", "GET", _stream, as_text=True),
]
for _place in (_COLLECTION, _SHARD):
    ROUTES += [
        route(_place, "GET", _list),
        route(_place, "POST", _create),
        Route(f"{_place}/upload", _upload, methods=["POST"]),
        route(f"{_place}/recover", "PUT", _recover),
        route(f"{_place}/{{snapshot}}", "GET", _download, as_text=True),
        route(f"{_place}/{{snapshot}}", "DELETE", _delete),
    ]
