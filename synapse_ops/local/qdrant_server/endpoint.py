"""How a route is made: a plain function of a request that has been read, run in a thread, its result in an envelope."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from synapse_ops.local.qdrant_server.answers import BadBody, Fault, accepted, answer, refused
from synapse_ops.local.qdrant_server.snapshots import Snapshots
from synapse_ops.local.qdrant_server.store import Store


@dataclass
class Server:
    """What the routes work on. responses: answers by method, endpoint and status; of points only, as a real server."""

    store: Store
    snapshots: Snapshots
    version: str
    responses: Counter[tuple[str, str, int]] = field(default_factory=Counter)


@dataclass
class Call:
    """A request that has been read. body: its JSON, None where there was none."""

    server: Server
    path: dict[str, str]
    query: dict[str, str]
    body: Any
    began: float

    @property
    def store(self) -> Store:
        return self.server.store

    def fields(self) -> dict[str, Any]:
        """Return the body, which has to be an object."""
        if not isinstance(self.body, dict):
            raise BadBody("EOF while parsing a value at line 1 column 0" if self.body is None else "expected an object")
        return self.body

    def waits(self) -> bool:
        return self.query.get("wait", "true") != "false"


ACCEPTED = object()  # returned by work that goes on after the answer
Work = Callable[[Call], Any]


def route(path: str, method: str, work: Work, *, as_text: bool = False) -> Route:
    """Return a route. as_text: its errors are plain text, as those of downloads are."""

    counted = path.replace("{name}", "{collection_name}") if "/points" in path else None

    async def endpoint(request: Request) -> Response:
        response = await respond(request)
        if counted is not None:
            request.app.state.server.responses[method, counted, response.status_code] += 1
        return response

    async def respond(request: Request) -> Response:
        began = time.monotonic()
        try:
            if request.method != method:  # Starlette adds HEAD to GET; a real server has none
                return Response(status_code=404)
            call = Call(
                request.app.state.server,
                path_parameters(request),
                dict(request.query_params),
                await _body(request),
                began,
            )
            result = await run_in_threadpool(work, call)
        except Fault as fault:
            return refused(fault, began, as_text=as_text)
        except OSError as error:  # a full disk
            return refused(Fault(f"File IO error: {error}"), began, as_text=as_text)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            return refused(BadBody(f"{type(error).__name__} {error}"), began, as_text=as_text)
        if isinstance(result, Response):
            return result
        return accepted(began) if result is ACCEPTED else await run_in_threadpool(answer, result, began)

    return Route(path, endpoint, methods=[method])


def path_parameters(request: Request) -> dict[str, str]:
    return {name: unquote(value) for name, value in request.path_params.items()}


async def _body(request: Request) -> Any:
    text = await request.body()
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        what = "EOF while parsing an object at line 1 column 1" if text.strip() == b"{" else str(error)
        raise BadBody(what) from error
