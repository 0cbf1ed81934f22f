"""A stand-in for the worker: it does no work, and shows as much in its metrics."""

from __future__ import annotations

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"# TYPE synapse_worker_jobs_total counter\nsynapse_worker_jobs_total 0\n")

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("", int(os.environ["SYNAPSE_WORKER_METRICS_PORT"])), Metrics).serve_forever()
