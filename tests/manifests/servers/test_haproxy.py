"""A real haproxy with the rendered file takes an API out of service that says it cannot serve, and takes it back."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports
from tools.program import serving

pytestmark = pytest.mark.tools
SPEC = """
health:
  - {{name: api, url: /health, interval: 1s, timeout: 1s}}
  - {{name: db, url: "/health/db?of='us'&deep=1", interval: 1s, timeout: 1s}}
server: {{port: {port}}}
"""
LIMIT_S = 90.0  # three checks, 10 s apart, and what a busy host takes


class Api(ThreadingHTTPServer):
    """An API whose process lives, and that can serve or not."""

    can_serve = True
    asked: frozenset[str] = frozenset()


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.asked |= {self.path}
        is_refused = self.path.startswith("/health/db") and not self.server.can_serve
        self.send_response(503 if is_refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def api() -> Iterator[Api]:
    with Api(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def await_status(port: int, wanted: int) -> None:
    ends = time.monotonic() + LIMIT_S
    found: object = None
    while time.monotonic() < ends:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            found = connection.getresponse().status
        except OSError as error:
            found = error
        finally:
            connection.close()
        if found == wanted:
            return
        time.sleep(0.05)
    pytest.fail(f"wanted {wanted}, found {found}")


def test_what_cannot_serve_gets_no_requests(tmp_path: Path) -> None:
    """It is asked the path of readiness, to the letter, and no other."""
    if shutil.which("haproxy") is None:
        pytest.skip("not installed: apt-get install haproxy")
    with api() as server:
        loaded, faults = check_text(SPEC.format(port=server.server_address[1]), Path("spec.yaml"))
        assert loaded is not None, faults
        write_directory(render_bundle(loaded.spec), tmp_path / "release")
        text = (tmp_path / "release" / "tls" / "haproxy.cfg").read_text()
        [port] = free_ports(1)
        plain = f"frontend https\n  bind 127.0.0.1:{port}\n"
        head, tail = text.split("frontend http\n")[0], text.split("ssl crt /etc/haproxy/certs/synapse.pem\n")[1]
        (tmp_path / "haproxy.cfg").write_text(f"{head}{plain}{tail}")

        with serving(["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")], tmp_path / "log"):
            await_status(port, 200)
            server.can_serve = False
            await_status(port, 503)
            server.can_serve = True
            await_status(port, 200)

        assert server.asked == {"/", "/health/db?of='us'&deep=1"}
