"""What the prober tells over HTTP: `/metrics` for Prometheus, `/health.json` for everybody else, `/healthz` for itself.

On loopback, readable by every process of the host: there is no secret in it, and nothing can be changed through it. A
foreign Host header is refused, so that a web page in a browser cannot read it through a name that it points here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.health import State

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from synapse_ops.services.prober import Prober

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(prober: Prober, now: datetime) -> bytes:
    """Return Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Metric]:
            yield from _families(prober, now)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _families(prober: Prober, now: datetime) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    beats = CounterMetricFamily("synapse_watch_heartbeat", "Rounds of the prober; stands still when it is dead.")
    beats.add_metric([], prober.beats)
    yield beats
    state = GaugeMetricFamily("synapse_probe_state", "1 for the state that a probe is in.", labels=["probe", "state"])
    up = GaugeMetricFamily("synapse_probe_up", "1 while healthy or degraded, 0 otherwise.", labels=["probe"])
    since = GaugeMetricFamily("synapse_probe_state_since_seconds", "When the state began.", labels=["probe"])
    last = GaugeMetricFamily("synapse_probe_verdict_seconds", "When the last verdict was given.", labels=["probe"])
    latency = GaugeMetricFamily("synapse_probe_latency_seconds", "Time of the last answer.", labels=["probe"])
    late = GaugeMetricFamily(
        "synapse_probe_verdict_delay_seconds",
        "From due time to stored verdict, the last one.",
        labels=["probe"],
    )
    measured = GaugeMetricFamily(
        "synapse_probe_measurement",
        "What the last verdict measured; the name carries the unit.",
        labels=["probe", "name"],
    )
    for name, watched in prober.watched.items():
        for word in State:
            state.add_metric([name, word], float(watched.condition.state is word))
        up.add_metric([name], float(watched.condition.state in {State.HEALTHY, State.DEGRADED}))
        since.add_metric([name], watched.condition.since.timestamp())
        if watched.at is None or watched.verdict is None:
            continue
        last.add_metric([name], watched.at.timestamp())
        late.add_metric([name], watched.delay_s)
        if watched.verdict.latency_s is not None:
            latency.add_metric([name], watched.verdict.latency_s)
        for measure, value in watched.verdict.measurements.items():
            measured.add_metric([name, measure], value)
    yield from (state, up, since, last, latency, late, measured)
    yield from _protection(prober, now)
    dropped = CounterMetricFamily("synapse_watch_unstored_verdicts", "Verdicts that could not be kept (a full disk).")
    dropped.add_metric([], prober.unstored)
    yield dropped


def _protection(prober: Prober, now: datetime) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    backup = GaugeMetricFamily(
        "synapse_last_backup_age_seconds", "Age of the newest backup, by repository.", labels=["repository", "subject"]
    )
    proof = GaugeMetricFamily(
        "synapse_last_proof_age_seconds", "Time since the last proof that passed.", labels=["repository", "subject"]
    )
    read = GaugeMetricFamily("synapse_repository_read", "1 when the repository could be read.", labels=["repository"])
    for name, found in (prober.protection or {}).items():
        read.add_metric([name], float("error" not in found))
        for subject, moments in found.get("subjects", {}).items():
            for family, key in ((backup, "backup_at"), (proof, "proven_at")):
                if moments.get(key) is not None:
                    age_s = now.timestamp() - datetime.fromisoformat(moments[key]).timestamp()
                    family.add_metric([name, subject], age_s)
    yield from (backup, proof, read)


def health_document(prober: Prober) -> dict[str, Any]:
    """Return `/health.json`: every probe by name, with its condition and last verdict."""
    return {
        "stack": prober.stack_name,
        "beats": prober.beats,
        "protection": prober.protection,
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
    """The ASGI application. hosts: the Host headers that are answered."""

    def __init__(self, prober: Prober, clock: Callable[[], datetime]) -> None:
        self._prober = prober
        self._clock = clock
        self.hosts: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = self._answer(scope)
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, scope: Scope) -> tuple[int, str, bytes]:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if host not in self.hosts:
            return 421, "text/plain", b"this host name is not served here\n"
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, "text/plain", b"only GET\n"
        if scope["path"] == "/metrics":
            return 200, _CONTENT_TYPE, metrics_text(self._prober, self._clock())
        if scope["path"] == "/health.json":
            return 200, "application/json", json.dumps(health_document(self._prober), ensure_ascii=False).encode()
        if scope["path"] == "/healthz":
            return 200, "text/plain", b"ok\n"
        return 404, "text/plain", b"/metrics, /health.json and /healthz are here\n"
