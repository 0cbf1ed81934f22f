"""Real proxies with the rendered files let through what is for the public, and refuse what is internal to the API."""

from __future__ import annotations

import http.client
import re
import shutil
from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports
from tests.manifests.servers.test_haproxy import api, await_status
from tools.program import serving

REFUSED = (
    "/metrics", "/metrics/", "/metrics?x=1", "/%6detrics", "/metrics%2Fx", "//metrics", "/docs",
    "/docs/oauth2-redirect", "/d%6Fcs", "/redoc", "/openapi.json", "//openapi.json?x=1", "/openapi%2Ejson",
)  # fmt: skip
PUBLIC = ("/metrics-of-mine", "/x/metrics", "/health/db", "/documents", "/v1/docs", "/openapi-json")


def configured(program: str, port: int, upstream: int, folder: Path) -> list[str]:
    """Write the rendered file with its TLS front at a port without TLS; return the command."""
    loaded, faults = check_text(f"server: {{port: {upstream}}}\n", Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path
    if program == "haproxy":
        text = documents["tls/haproxy.cfg"].text
        head, tail = text.split("frontend http\n")[0], text.split("ssl crt /etc/haproxy/certs/synapse.pem\n")[1]
        (folder / "cfg").write_text(f"{head}frontend https\n  bind 127.0.0.1:{port}\n{tail}")
        return ["haproxy", "-db", "-f", str(folder / "cfg")]
    text = documents["docker/nginx.conf"].text.replace("api:", "127.0.0.1:")
    before, https = text.rsplit("  server {\n", 1)
    before = before.rsplit("  server {\n", 1)[0]
    text = before + "  server {\n" + https.replace("listen 8443 ssl", f"listen 127.0.0.1:{port}")
    text = re.sub(r"^ *(listen \[|ssl_certificate).*\n", "", text, flags=re.MULTILINE).replace("/tmp/", f"{folder}/")
    (folder / "cfg").write_text(text.replace("/dev/stdout", str(folder / "access")))
    return ["nginx", "-g", "daemon off;", "-c", str(folder / "cfg")]


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
def test_what_is_internal_is_refused_at_the_entry_however_it_is_written(program: str, tmp_path: Path) -> None:
    """uvicorn takes `%6d` for an m, so that a proxy which compares letters would let it through."""
    if shutil.which(program) is None:
        pytest.skip(f"not installed: apt-get install {program}")
    with api() as server:
        [port] = free_ports(1)
        with serving(configured(program, port, server.server_address[1], tmp_path), tmp_path / "log"):
            await_status(port, 200)
            answers = {}
            for path in (*REFUSED, *PUBLIC):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                answers[path] = connection.getresponse().status
                connection.close()

        assert answers == dict.fromkeys(REFUSED, 404) | dict.fromkeys(PUBLIC, 200)
        assert not server.asked & set(REFUSED)
