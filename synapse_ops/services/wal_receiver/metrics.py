"""What the receiver serves: `/metrics` for Prometheus, `/health` for a probe (200, or 503 with the reason)."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from synapse_ops.errors import ConfigError
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.spec.fixed import WAL_METRICS_PORT

PREFIX = "synapse_ops_wal"
_COUNTERS = {
    "received_bytes": "Bytes of WAL received.",
    "stored_bytes": "Bytes of objects stored, compressed.",
    "chunks": "Chunks stored.",
    "segments": "Whole segments stored.",
    "merges": "Times that chunks were merged.",
    "indexes": "Indexes written.",
    "compared": "Stored objects compared with the server's bytes.",
    "failed_sessions": "Sessions that a fault ended.",
}


class _Collector:
    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def collect(self) -> Iterator[Metric]:
        standing = self._standing
        for name, told, value in (
            ("up", "1 while WAL is received and stored.", float(not standing.unhealthy())),
            ("server_lsn_bytes", "End of WAL on the server, as a position.", standing.server_lsn.position),
            ("received_lsn_bytes", "End of WAL received, as a position.", standing.received_lsn.position),
            ("durable_lsn_bytes", "End of WAL in the repository, as a position.", standing.durable_lsn.position),
            ("lag_bytes", "WAL on the server that is not in the repository.", standing.lag_bytes),
            ("lag_seconds", "How long the oldest WAL received waits for the store.", standing.lag_s),
            ("timeline", "Timeline that is received.", standing.timeline),
            ("spool_bytes", "WAL on this host's disk.", standing.spool_bytes),
            ("put_seconds", "Time of the last put.", standing.put_s),
            ("unprotected", "1 while commits do not wait as the spec wants.", float(bool(standing.unprotected))),
            ("gap_bytes", "WAL that was lost to the repository since the start.", standing.gap_bytes),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", told, value=value)
        if (left_s := standing.time_left_s) is not None:
            told = "How long the store may be away before WAL is lost, at the server's present pace."
            yield GaugeMetricFamily(f"{PREFIX}_time_left_seconds", told, value=left_s)
        if standing.gap_at_s is not None:
            told = "When WAL was last found to be lost to the repository; no series before."
            yield GaugeMetricFamily(f"{PREFIX}_gap_timestamp_seconds", told, value=standing.gap_at_s)
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", told, value=standing.counts.get(name, 0))


def serve(standing: Standing, host: str, port: int | None = None) -> ThreadingHTTPServer:
    """Serve from threads until the process ends. port: None: the usual one, or a free one where that is taken."""
    registry = CollectorRegistry()
    registry.register(_Collector(standing))

    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        server_version = "synapse-ops"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path == "/health":
                body = json.dumps(standing.as_json()).encode()
                self._answer(503 if standing.unhealthy() else 200, body, "application/json")
            else:
                self._answer(404, b"not found\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
            """Requests are not logged."""

    server = _bound(host, (WAL_METRICS_PORT, 0) if port is None else (port,), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _bound(host: str, ports: Sequence[int], handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    fault: OSError | None = None
    for port in ports:
        try:
            return Server((host, port), handler)
        except OSError as error:
            fault = error
    raise ConfigError(f"could not serve metrics on {host}: {fault}", hint="Correct watch.host, or free the port.")
