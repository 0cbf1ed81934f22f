"""The guard before Dagster's webserver: which requests are allowed, decided before one reaches it.

As shipped, the webserver on a loopback port obeys any web page that the operator's browser opens: a GET with a
mutation, a text/plain POST from a foreign origin, a foreign Host (DNS rebinding), an empty POST to /report_*: all were
tried, all were obeyed. So everything is refused but these:

    any request         a Host of the allow-list
    GET  /healthz       says that we serve, nothing else
    GET  /open?token=   one time only: sets the session cookie and leads to /
    POST /report_*      the report token as bearer; never the cookie, which a browser sends by itself
    POST /graphql       the cookie, our own Origin, application/json
    WS   /graphql       the cookie, our own Origin
    GET  /runbooks/NAME the cookie; a page of docs/runbooks as text, which checks and failures link to
    GET, HEAD           the cookie; never /graphql, whose GET carries mutations

Secrets are compared in constant time. This module knows ASGI, not Dagster.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from synapse_ops.domain.runbooks import UI_PATH

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH_PATH = "/healthz"
OPEN_PATH = "/open"
_GRAPHQL_PATH = "/graphql"
_REPORT_PREFIX = "/report_"
_POLICY_VIOLATION = 1008  # the websocket close code for "your request breaks our rules"; before accept it becomes 403


@dataclass(frozen=True)
class GuardSettings:
    """What the guard lets pass.

    hosts: allowed Host headers, port included, lower case. session_secret: the cookie's value.
    token_file: holds the one-time token; removed when it is used. report_token: None refuses every /report_*.
    runbooks: the folder of the pages.
    """

    hosts: frozenset[str]
    cookie_name: str
    session_secret: str = field(repr=False)
    token_file: Path
    report_token: str | None = field(default=None, repr=False)
    runbooks: Path | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a request is turned away: the HTTP status and one sentence for the reader."""

    status: int
    sentence: str


class WebserverGuard:
    """ASGI middleware that refuses all that the module's table does not name."""

    def __init__(self, app: App, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = _Request(scope)
        if scope["type"] == "websocket":
            await self._websocket(request, scope, receive, send)
        else:
            await self._http(request, scope, receive, send)

    async def _websocket(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._wrong_host(request) or self._wrong_origin(request) or self._no_session(request)
        if refusal is None and request.path == _GRAPHQL_PATH:
            await self._app(scope, receive, send)
            return
        await receive()  # the connect message
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})

    async def _http(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._wrong_host(request)
        if refusal is None and request.path == HEALTH_PATH and request.method == "GET":
            await _respond(send, 200, "serving")
        elif refusal is None and request.path == OPEN_PATH and request.method == "GET":
            await self._open(request, send)
        else:
            refusal = refusal or self._refusal(request)
            if refusal is None and request.path.startswith(UI_PATH) and request.method == "GET":
                await self._runbook(request.path.removeprefix(UI_PATH), send)
            elif refusal is None:
                await self._app(scope, receive, send)
            else:
                await _respond(send, refusal.status, refusal.sentence)

    async def _runbook(self, name: str, send: Send) -> None:
        folder = self._settings.runbooks
        page = folder / f"{name}.md" if folder is not None and re.fullmatch(r"[a-z0-9-]{1,64}", name) else None
        if page is None or not page.is_file():
            await _respond(send, 404, "There is no such runbook.")
        else:
            await _respond(send, 200, page.read_text(encoding="utf-8").rstrip())

    def _refusal(self, request: _Request) -> Refusal | None:
        """Return why the request may not pass, or None when it may. The Host has been looked at already."""
        if request.path.startswith(_REPORT_PREFIX):
            return self._wrong_bearer(request)
        if request.path.rstrip("/") == _GRAPHQL_PATH:
            if request.method != "POST":
                return Refusal(405, "GraphQL is served by POST only: a GET could carry a mutation from any web page.")
            if request.content_type != "application/json":
                return Refusal(415, "GraphQL takes application/json only: other types reach us from any web page.")
            return self._wrong_origin(request) or self._no_session(request)
        if request.method not in {"GET", "HEAD"}:
            return Refusal(405, f"{request.method} is not served here.")
        return self._no_session(request)

    def _wrong_host(self, request: _Request) -> Refusal | None:
        if request.host in self._settings.hosts:
            return None
        return Refusal(421, "This Host is not in the allow-list (SYNAPSE_UI_HOSTS).")

    def _wrong_origin(self, request: _Request) -> Refusal | None:
        scheme, _, origin_host = request.origin.partition("://")
        if scheme in {"http", "https"} and origin_host == request.host:
            return None
        return Refusal(403, "The Origin is not this server's.")

    def _no_session(self, request: _Request) -> Refusal | None:
        given = request.cookie(self._settings.cookie_name)
        if _same(given, self._settings.session_secret):
            return None
        return Refusal(401, "No session. `synapse-ops ui` prints a URL that opens one.")

    def _wrong_bearer(self, request: _Request) -> Refusal | None:
        expected = self._settings.report_token
        scheme, _, given = request.header("authorization").partition(" ")
        if expected is None:
            return Refusal(403, "Reports are off: no SYNAPSE_REPORT_TOKEN is set.")
        if scheme.lower() != "bearer" or not _same(given.strip(), expected):
            return Refusal(401, "Reports need the report token as bearer.")
        return None

    async def _open(self, request: _Request, send: Send) -> None:
        given = request.query("token")
        if not self._use_token(given):
            await _respond(
                send, 403, "This URL was already used or is not valid. `synapse-ops ui --new-url` prints another."
            )
            return
        cookie = f"{self._settings.cookie_name}={self._settings.session_secret}; Path=/; HttpOnly; SameSite=Strict"
        # a page, not a redirect: SameSite=Strict cookies are withheld from a redirect that began on another site
        page = b'<!doctype html><meta http-equiv="refresh" content="0; url=/"><a href="/">Open Dagster</a>\n'
        await _send_body(send, 200, page, b"text/html; charset=utf-8", [(b"set-cookie", cookie.encode("latin-1"))])

    def _use_token(self, given: str) -> bool:
        """Say whether `given` is the one-time token, and use it up. Of two that come at once one succeeds."""
        try:
            expected = self._settings.token_file.read_text(encoding="ascii").strip()
            if not _same(given, expected):
                return False
            self._settings.token_file.unlink()
        except FileNotFoundError:
            return False
        return True


class _Request:
    """The few facts of an ASGI scope that the guard judges. Duplicate headers that matter are refused as empty."""

    def __init__(self, scope: Scope) -> None:
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._query: bytes = scope.get("query_string", b"")
        self.path: str = scope["path"]
        self.method: str = scope.get("method", "GET")

    def header(self, name: str) -> str:
        """Return the only header of that name, or "" when it is absent or given twice."""
        found = [value for key, value in self._headers if key.lower() == name.encode("ascii")]
        return found[0].decode("latin-1") if len(found) == 1 else ""

    @property
    def host(self) -> str:
        return self.header("host").lower()

    @property
    def origin(self) -> str:
        return self.header("origin").lower()

    @property
    def content_type(self) -> str:
        return self.header("content-type").partition(";")[0].strip().lower()

    def cookie(self, name: str) -> str:
        """Return a cookie's value; HTTP/2 and some clients split the header, so all Cookie headers are read."""
        text = ";".join(value.decode("latin-1") for key, value in self._headers if key.lower() == b"cookie")
        pairs = (pair.strip().partition("=") for pair in text.split(";"))  # other sites' odd cookies must not hide ours
        return next((value for key, _, value in pairs if key == name), "")

    def query(self, name: str) -> str:
        return parse_qs(self._query.decode("latin-1")).get(name, [""])[0]


def _same(given: str, expected: str) -> bool:
    return bool(given) and hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8"))


async def _respond(send: Send, status: int, sentence: str) -> None:
    await _send_body(send, status, (sentence + "\n").encode(), b"text/plain; charset=utf-8", [])


async def _send_body(
    send: Send, status: int, body: bytes, content_type: bytes, more_headers: list[tuple[bytes, bytes]]
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        *more_headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
