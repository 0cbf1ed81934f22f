"""What the prober serves over HTTP: `/metrics` for Prometheus, `/health.json` for other readers, `/healthz` for itself.

On loopback, readable by every process of the host: there is no secret in it. `POST /alerts` takes the notifications of
Alertmanager, with the token of `alerting.webhook_token`; nothing else can be changed through it. `GET /start-gate`
tells a node of a rendered stack whether it may start as the primary. A foreign Host header is refused, so that a web
page in a browser cannot read it through a name that it points here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from synapse_ops.domain.health.alerts import parse_notification
from synapse_ops.errors import SynapseOpsError
from synapse_ops.manifests.monitoring.alertmanager import WEBHOOK_PATH
from synapse_ops.manifests.servers.start_gate import PATH as START_GATE_PATH
from synapse_ops.operations.failover.start_gate import refusal
from synapse_ops.services.prober.families import families

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from synapse_ops.services.prober.prober import Prober

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


GATE_ANSWER_S = 10.0  # less than whoever asks waits (manifests/servers/start_gate.py)
MOST_BODY_BYTES = 8 << 20  # a thousand alerts with long labels


def _header(scope: Scope, wanted: bytes) -> str:
    return str(next((value for name, value in scope["headers"] if name == wanted), b"").decode("latin-1"))


def metrics_text(prober: Prober) -> bytes:
    """Return Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Metric]:
            yield from families(prober)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def health_document(prober: Prober) -> dict[str, Any]:
    """Return `/health.json`: every probe by name, with its condition and last verdict."""
    return {
        "stack": prober.stack_name,
        "beats": prober.beats,
        "protection": prober.protection,
        "alerts": [alert.to_json() for alert in prober.alerts],
        "probes": {
            name: {
                "kind": watched.probe.kind,
                "target": watched.probe.target,
                "state": watched.condition.state,
                "since": watched.condition.since.isoformat(),
                "reason": watched.condition.reason,
                "verdict": watched.verdict.state if watched.verdict is not None else None,
                "verdict_at": watched.at.isoformat() if watched.at is not None else None,
                "latency_s": watched.verdict.latency_s if watched.verdict is not None else None,
                "measurements": dict(watched.verdict.measurements) if watched.verdict is not None else {},
            }
            for name, watched in prober.watched.items()
        },
    }


class MetricsApp:
    """The ASGI application. hosts: the Host headers that are answered, besides the names that the spec renders."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self.hosts: frozenset[str] = frozenset()
        self._asking: asyncio.Future[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "POST" and scope["path"] == WEBHOOK_PATH and self._is_called_by_name(scope):
            status, kind, body = await self._take_alerts(scope, receive)
        elif scope["method"] == "GET" and scope["path"] == START_GATE_PATH and self._is_called_by_name(scope):
            status, kind, body = await self._ask_gate(scope)
        else:
            status, kind, body = self._answer(scope)
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _is_called_by_name(self, scope: Scope) -> bool:
        return _header(scope, b"host").lower() in self.hosts | self._prober.rendered_names

    async def _take_alerts(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        """Answer Alertmanager: 200 when the alerts are stored. It repeats a call that was answered with 5xx."""
        if not _header(scope, b"authorization"):
            return 401, "text/plain", b"a token is needed\n"
        try:
            wanted = f"Bearer {await self._prober.webhook_token()}".encode()
        except SynapseOpsError:
            return 503, "text/plain", b"the token of alerting.webhook_token cannot be read here\n"
        if not hmac.compare_digest(_header(scope, b"authorization").encode("latin-1"), wanted):
            return 401, "text/plain", b"the token is another\n"
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "text/plain", b"it ended too early\n"
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BODY_BYTES:
                return 413, "text/plain", b"too long\n"
        try:
            told = parse_notification(bytes(body), datetime.now(UTC))
        except ValueError:
            return 400, "text/plain", b"this is not a notification of Alertmanager\n"
        if not await self._prober.take_alerts(told):
            return 503, "text/plain", b"the alerts could not be stored\n"
        return 200, "text/plain", b"ok\n"

    async def _ask_gate(self, scope: Scope) -> tuple[int, str, bytes]:
        """Answer 200: it may start; 409: it must not; 503: that is not known. The last line of the body says why.

        One question at a time is asked of the repository: a store that hangs must not take the prober's threads.
        """
        asked = {name: values[0] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        try:
            node, cluster = asked["node"], (asked["system_identifier"], int(asked["timeline"]))
        except (KeyError, ValueError):
            return 400, "text/plain", b"node, system_identifier and timeline are asked for\n"
        if self._asking is not None and not self._asking.done():
            return 503, "text/plain", b"the repository has not answered yet\n"
        self._asking = asyncio.ensure_future(asyncio.to_thread(refusal, self._prober.stack, node, cluster))
        try:
            why_not = await asyncio.wait_for(asyncio.shield(self._asking), GATE_ANSWER_S)
        except TimeoutError:
            return 503, "text/plain", b"the repository has not answered yet\n"
        except SynapseOpsError as error:
            return 503, "text/plain", f"the repository does not say: {error.message}\n".encode()
        return (409, "text/plain", f"{why_not}\n".encode()) if why_not else (200, "text/plain", b"ok\n")

    def _answer(self, scope: Scope) -> tuple[int, str, bytes]:
        if not self._is_called_by_name(scope):
            return 421, "text/plain", b"this host name is not served here\n"
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, "text/plain", b"only GET\n"
        if scope["path"] == "/metrics":
            return 200, _CONTENT_TYPE, metrics_text(self._prober)
        if scope["path"] == "/health.json":
            return 200, "application/json", json.dumps(health_document(self._prober)).encode()
        if scope["path"] == "/healthz":
            return 200, "text/plain", b"ok\n"
        return 404, "text/plain", b"/metrics, /health.json and /healthz are here\n"
