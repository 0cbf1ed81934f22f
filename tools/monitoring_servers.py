"""Prometheus and Alertmanager as servers of a proof, and what stands at both ends of them: targets, and a webhook.

All listen on 127.0.0.1 and end with the block that started them; the kernel ends the programs when we are killed.
"""

from __future__ import annotations

import http.client
import http.server
import json
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import psutil

from synapse_ops.systems.host.processes import free_ports
from tools.program import Server

LOOPBACK = "127.0.0.1"
METRICS = b"stand_in_requests_total 1\n"
QUERY_TIMEOUT_S = 5.0
_POLL_S = 0.05
_COMPLAINT_CHARS = 400
_SERVE_POLL_S = 0.02  # how long `shutdown` waits at most


def wait_for(has_come: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether the condition held within `timeout_s`; it is asked once more at the end."""
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        if has_come():
            return True
        time.sleep(_POLL_S)
    return has_come()


def _get(url: str) -> bytes | None:
    """Return what a server on loopback answers, whatever proxy is configured; None for another status than 2xx."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=QUERY_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        return answer.read() if answer.status // 100 == 2 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def get_json(url: str, **params: str) -> Any:
    """Return the JSON that a server on loopback answers; None when it answers none."""
    try:
        return json.loads(_get(f"{url}?{urlencode(params)}") or b"null")
    except ValueError:
        return None


def answers(url: str) -> bool:
    """Tell whether a server on loopback answers with a status of 2xx."""
    return _get(url) is not None


def prometheus_command(config: Path, data_dir: Path, port: int) -> tuple[str, ...]:
    """Return the call of a Prometheus of our own. port: 0 takes a free one."""
    return (
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={data_dir}",
        f"--web.listen-address={LOOPBACK}:{port}",
    )


def alertmanager_command(config: Path, data_dir: Path, port: int) -> tuple[str, ...]:
    """Return the call of an Alertmanager that is no member of a cluster. port: 0 takes a free one."""
    return (
        "prometheus-alertmanager",
        f"--config.file={config}",
        f"--storage.path={data_dir}",
        f"--web.listen-address={LOOPBACK}:{port}",
        "--cluster.listen-address=",
    )


@dataclass(frozen=True, slots=True)
class MonitoringServer:
    """Prometheus or Alertmanager, running. log: what it says."""

    name: str
    server: Server
    log: Path

    @property
    def url(self) -> str:
        """The address that it chose; "" while it listens on none."""
        with suppress(psutil.Error):
            for found in psutil.Process(self.server.pid).net_connections("tcp"):
                if found.status == psutil.CONN_LISTEN:
                    return f"http://{LOOPBACK}:{found.laddr.port}"
        return ""

    def is_ready(self) -> bool:
        return bool(url := self.url) and answers(f"{url}/-/ready")

    def has_ended(self) -> bool:
        return self.server.poll() is not None

    def complaint(self) -> str:
        """Return what its last line of a warning or worse says; "" where there is none."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        complaints = [line for line in lines if "level=error" in line or "level=warn" in line]
        return complaints[-1].partition(" level=")[2][:_COMPLAINT_CHARS] if complaints else ""


def instant(prometheus_url: str, expr: str) -> list[Any]:
    """Return the series of an instant query; empty when there is none, or no answer."""
    answer = get_json(f"{prometheus_url}/api/v1/query", query=expr)
    return list(answer["data"]["result"]) if answer else []


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Listener(socketserver.ThreadingTCPServer):
    """A server without the look-up of our own name that HTTPServer does, and without words about broken connections."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address


class _LoopbackServer:
    """An HTTP server in a thread of ours, on one port that it keeps when it is stopped and started again."""

    def __init__(self, handler: type[_Quiet]) -> None:
        [self.port] = free_ports(1)
        self._handler = handler
        self._server: _Listener | None = None

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Listen. Raises OSError when somebody else took the port."""
        self._server = _Listener((LOOPBACK, self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, args=(_SERVE_POLL_S,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on; nothing to do when it is stopped."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()


class StandIn(_LoopbackServer):
    """A target: whatever path is asked, it answers a metric."""

    def __init__(self) -> None:
        class Handler(_Quiet):
            def do_GET(self) -> None:
                self.answer(200, METRICS)

        super().__init__(Handler)


class Webhook(_LoopbackServer):
    """Takes Alertmanager's calls. calls: those with the token, oldest first; refused: those without, answered 401."""

    def __init__(self, token: str) -> None:
        calls, refused = list[dict[str, Any]](), list[dict[str, Any]]()

        class Handler(_Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_allowed = self.headers["Authorization"] == f"Bearer {token}"
                (calls if is_allowed else refused).append(body)
                self.answer(200 if is_allowed else 401)

        super().__init__(Handler)
        self.calls = calls
        self.refused = refused

    @property
    def url(self) -> str:
        return f"http://{self.address}/alerts"

    def alerts(self) -> list[dict[str, Any]]:
        """Return every alert of every call, oldest first."""
        return [alert for call in list(self.calls) for alert in call["alerts"]]

    def last_told(self, labels: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the newest word on an alert with these labels; None when there was none."""
        told = [alert for alert in self.alerts() if labels.items() <= alert["labels"].items()]
        return told[-1] if told else None

    def last_status(self, labels: Mapping[str, str]) -> str:
        """Return `firing` or `resolved`, as was told last; "" when nothing was."""
        told = self.last_told(labels)
        return str(told["status"]) if told else ""

    def was_called_without_token(self, labels: Mapping[str, str]) -> bool:
        return any(labels.items() <= alert["labels"].items() for call in list(self.refused) for alert in call["alerts"])
