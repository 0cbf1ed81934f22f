"""All of it as one ASGI application: routes, the key, and a flush every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from synapse_ops.local.qdrant_server import routes_collections, routes_points, routes_snapshots
from synapse_ops.local.qdrant_server.endpoint import Server
from synapse_ops.local.qdrant_server.snapshots import Snapshots
from synapse_ops.local.qdrant_server.store import Store

VERSION = "1.18.3"  # whose answers and archives these are
FLUSH_EVERY_S = 5.0  # as a real server's flush_interval_sec
OPEN_TO_ALL = ("/", "/healthz", "/readyz", "/livez")


class KeyGuard:
    """Asks for the key wherever a real server does, and keeps %2F in names from becoming a part of the path."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope)) if scope["path"] not in OPEN_TO_ALL else None
        if refusal is not None:
            await Response(refusal, status_code=401)(scope, receive, send)
            return
        await self.app({**scope, "path": scope["raw_path"].partition(b"?")[0].decode("ascii")}, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        given = headers.get("api-key")
        if given is None:
            given = headers.get("authorization", "").removeprefix("Bearer ") or None
        if given is None:
            return "Must provide an API key or an Authorization bearer token"
        return None if hmac.compare_digest(given.encode(), self.key) else "Invalid API key or JWT"


def make_application(store: Store, key: str | None) -> ASGIApp:
    """Return the application. It closes the store when it is shut down. key: None asks for none."""

    @contextlib.asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        del app
        flushing = asyncio.create_task(_flush_for_ever(store))
        yield
        flushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flushing
        await run_in_threadpool(store.close)

    async def missing(request: Request, error: Any) -> Response:
        del request, error
        return Response(status_code=404)

    routes = [*routes_collections.ROUTES, *routes_points.ROUTES, *routes_snapshots.ROUTES]
    app = Starlette(routes=routes, lifespan=living, exception_handlers={404: missing, 405: missing})
    app.router.redirect_slashes = False
    app.state.server = Server(store, Snapshots(store), VERSION)
    return KeyGuard(app, key) if key else app


async def _flush_for_ever(store: Store) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        for collection in store.open_collections():
            await run_in_threadpool(collection.flush)
