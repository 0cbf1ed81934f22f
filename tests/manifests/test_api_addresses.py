"""The API answers on every address of its container, as a real uvicorn with the rendered command line shows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from synapse_ops.manifests.stack.processes import api_command
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports

START_LIMIT_S = 30.0
APPLICATION = """async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "workers", "asked"),
    [
        ("0.0.0.0", 1, ["127.0.0.1"]),
        ("127.0.0.1", 2, ["127.0.0.1"]),
        pytest.param("::", 1, ["127.0.0.1", "[::1]"], marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("::", 2, ["127.0.0.1", "[::1]"], marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
def test_the_api_answers_on_all_addresses(host: str, workers: int, asked: list[str], tmp_path: Path) -> None:
    """Health checks and proxies ask by IPv4, an IPv6-only network by IPv6: uvicorn takes one of both if told badly."""
    [port] = free_ports(1)
    text = f"server: {{host: '{host}', workers: {workers}, port: {port}}}\ndocker: {{application: 'served:app'}}\n"
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    (tmp_path / "served.py").write_text(APPLICATION, encoding="utf-8")
    program, *arguments = api_command(loaded.spec)
    command = [sys.executable, "-m", program, *arguments]

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": "."})
    try:
        for address in asked:
            _await_answer(f"http://{address}:{port}/", process, tmp_path / "log")
    finally:
        process.terminate()
        process.wait(START_LIMIT_S)


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_LIMIT_S
    while (found := _status(url)) != 204:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, f"{url}: {found}\n{log.read_text()}"
        time.sleep(0.05)


def _status(url: str) -> int | str:
    try:
        with urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except URLError as error:
        return str(error)
