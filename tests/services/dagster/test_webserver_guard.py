"""The guard, before the real Dagster webserver: what a web page can send is refused, what the UI sends passes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_ops.services.dagster.webserver import runbooks_folder
from synapse_ops.services.dagster.webserver_guard import App, GuardSettings, WebserverGuard
from synapse_ops.systems.dagster_storage import open_workspace

HOST = "127.0.0.1:3000"
ORIGIN = f"http://{HOST}"
SESSION = "the-session-secret"
TOKEN = "the-report-token"
COOKIE = f"other=1; synapse_session={SESSION}"
MUTATION = "mutation { setNuxSeen }"
QUERY = json.dumps({"query": MUTATION}).encode()
ASSET_PATH = "/report_asset_materialization/database_dump"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(app: App, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
    """Send one request through ASGI and return the reply."""
    path, _, query = path.partition("?")
    given = {"host": HOST, **(headers or {})}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    replied = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], replied, b"".join(part.get("body", b"") for part in sent[1:]))


def open_websocket(app: App, headers: dict[str, str]) -> str:
    """Ask for a websocket on /graphql and return the type of the first answer."""
    scope: dict[str, Any] = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "scheme": "ws",
        "path": "/graphql",
        "raw_path": b"/graphql",
        "query_string": b"",
        "root_path": "",
        "subprotocols": ["graphql-ws"],
        "headers": [(name.encode(), value.encode()) for name, value in {"host": HOST, **headers}.items()],
    }
    incoming = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return str(sent[0]["type"])


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("dagster")
    (home / "workspace.yaml").write_text("load_from: []\n")
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made


@pytest.fixture(scope="module")
def bare_app(instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Dagster's own app, as shipped."""
    from dagster_webserver.app import create_app_from_workspace_process_context

    workspace = tmp_path_factory.mktemp("workspace") / "workspace.yaml"
    workspace.write_text("load_from: []\n")
    with open_workspace(instance, workspace) as context:
        yield create_app_from_workspace_process_context(context)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "one-time-token"


@pytest.fixture
def guarded(bare_app: App, token_file: Path) -> App:
    settings = GuardSettings(frozenset({HOST}), "synapse_session", SESSION, token_file, TOKEN, runbooks_folder())
    return WebserverGuard(bare_app, settings)


HOSTILE = {
    "mutation by GET": ("GET", f"/graphql?query={MUTATION}", {"accept": "*/*"}, b""),
    "text/plain POST from a foreign origin": (
        "POST",
        f"/graphql?query={MUTATION}",
        {"content-type": "text/plain", "origin": "https://evil.example"},
        QUERY,
    ),
    "foreign Host": (
        "POST",
        "/graphql",
        {"host": "evil.example:3000", "content-type": "application/json", "origin": "http://evil.example:3000"},
        QUERY,
    ),
    "empty POST to a report": ("POST", ASSET_PATH, {}, b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_is_obeyed_as_shipped_and_refused_by_the_guard(name: str, bare_app: App, guarded: App) -> None:
    """What any web page can make a browser send is refused, with the operator's cookie or without it."""
    method, path, headers, body = HOSTILE[name]

    assert ask(bare_app, method, path, headers, body).status == 200
    assert ask(guarded, method, path, headers, body).status in {401, 403, 405, 415, 421}
    assert ask(guarded, method, path, {**headers, "cookie": COOKIE}, body).status in {401, 403, 405, 415, 421}


def test_hostile_report_leaves_no_event(instance: dg.DagsterInstance, guarded: App) -> None:
    """A refused report never reaches Dagster: freshness cannot be forged."""
    ask(guarded, "POST", "/report_asset_materialization/forged", {"cookie": COOKIE, "origin": ORIGIN})

    assert instance.get_latest_materialization_event(dg.AssetKey("forged")) is None


def test_report_with_the_token_is_recorded(instance: dg.DagsterInstance, guarded: App) -> None:
    """A host of ours reports with the token as bearer, without any cookie."""
    headers = {"authorization": f"Bearer {TOKEN}"}

    assert ask(guarded, "POST", "/report_asset_materialization/ours", headers).status == 200
    assert instance.get_latest_materialization_event(dg.AssetKey("ours")) is not None


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_report_with_another_word_is_refused(guarded: App, authorization: str) -> None:
    """Only `Bearer <token>` opens the reports."""
    assert ask(guarded, "POST", ASSET_PATH, {"authorization": authorization}).status == 401


def test_reports_are_off_without_a_token(bare_app: App, token_file: Path) -> None:
    """No token set means no reports, not open reports."""
    guard = WebserverGuard(bare_app, GuardSettings(frozenset({HOST}), "c", SESSION, token_file, None))

    assert ask(guard, "POST", ASSET_PATH, {"authorization": "Bearer "}).status == 403


def test_the_ui_itself_passes(guarded: App) -> None:
    """With the session, from our own origin, page, query and websocket work."""
    own = {"cookie": COOKIE, "origin": ORIGIN}
    body = json.dumps({"query": "{ version }"}).encode()

    assert ask(guarded, "GET", "/", own).status == 200
    assert b"version" in ask(guarded, "POST", "/graphql", {**own, "content-type": "application/json"}, body).body
    assert open_websocket(guarded, own) == "websocket.accept"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": COOKIE},
        {"origin": ORIGIN},
        {"cookie": COOKIE, "origin": "https://evil.example"},
        {"cookie": COOKIE, "origin": "null"},
        {"cookie": COOKIE, "origin": ORIGIN, "host": "evil.example"},
        {"cookie": "synapse_session=guess", "origin": ORIGIN},
    ],
)
def test_websocket_and_query_need_cookie_host_and_origin(guarded: App, headers: dict[str, str]) -> None:
    """Browsers do not hold websockets to the same origin: we do."""
    asked = ask(guarded, "POST", "/graphql", {"content-type": "application/json", **headers}, QUERY)

    assert asked.status in {401, 403, 421}
    assert open_websocket(guarded, headers) == "websocket.close"


@pytest.mark.parametrize("path", ["/", "/runs", "/server_info", "/dagit_info", "/debug", "/graphql/", "//graphql"])
def test_nothing_is_shown_without_a_session(guarded: App, path: str) -> None:
    """Everything but /healthz needs the session, reading included."""
    assert ask(guarded, "GET", path).status in {401, 405}
    assert ask(guarded, "GET", "/healthz").status == 200


def test_one_time_url_opens_one_session_and_no_second(guarded: App, token_file: Path) -> None:
    """The URL works once; its cookie is HttpOnly and SameSite=Strict, and no referrer carries the token on."""
    token_file.write_text("once")

    first = ask(guarded, "GET", "/open?token=once")
    second = ask(guarded, "GET", "/open?token=once")

    assert (first.status, second.status) == (200, 403)
    assert first.headers["set-cookie"] == f"synapse_session={SESSION}; Path=/; HttpOnly; SameSite=Strict"
    assert first.headers["referrer-policy"] == "no-referrer"


def test_wrong_token_does_not_use_up_the_right_one(guarded: App, token_file: Path) -> None:
    """Guessing costs the operator nothing."""
    token_file.write_text("once")

    assert ask(guarded, "GET", "/open?token=guess").status == 403
    assert ask(guarded, "GET", "/open").status == 403
    assert ask(guarded, "GET", "/open?token=once").status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runbooks/proof-failed", 200),
        ("/runbooks/nothing", 404),
        ("/runbooks/../../README", 404),
        ("/runbooks/", 404),
    ],
)
def test_a_runbook_is_served_to_who_has_a_session_and_no_other_file_is(guarded: App, path: str, status: int) -> None:
    """The link in a check's metadata works where the check is read."""
    reply = ask(guarded, "GET", path, {"cookie": COOKIE})

    assert (reply.status, ask(guarded, "GET", path).status) == (status, 401)
    assert (b"**Do**" in reply.body) is (status == 200)


def test_settings_never_show_their_secrets(token_file: Path) -> None:
    """A settings object in a log line shows neither session nor token."""
    shown = repr(GuardSettings(frozenset({HOST}), "c", SESSION, token_file, TOKEN))

    assert SESSION not in shown
    assert TOKEN not in shown
