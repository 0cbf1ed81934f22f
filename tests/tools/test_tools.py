"""Every outside tool that is installed takes every document of the example spec, and refuses a broken one."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from synapse_ops.manifests.bundle import Bundle, bundle_of, render_bundle
from synapse_ops.manifests.document import Document
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec import load_spec
from tests.manifests.specs import CHANGES, spec_of
from tools import TOOLS
from tools.program import found_program, run_program
from tools.prove_release import Passed, prove_release
from tools.tls_servers import accepts
from tools.waivers import WAIVERS

pytestmark = pytest.mark.tools
EXAMPLE = Path(__file__).parents[2] / "examples" / "synapse" / "infrastructure.yaml"
BROKEN = {
    "promtool-check-config": ("prometheus/prometheus.yml", b"scrape_interval", b"scrape_intervall"),
    "promtool-check-rules": ("prometheus/rules/alerts.yml", b'for: "', b'four: "'),
    "promtool-test-rules": ("prometheus/rules/alerts.yml", b"up == 0", b"up == 2"),
    "amtool-check-config": ("alertmanager/alertmanager.yml", b"receiver:", b"reciever:"),
    "amtool-routes": ("alertmanager/alertmanager.yml", b"critical", b"criticall"),
    "redis-server": ("redis/redis.conf", b"maxmemory-policy", b"maxmemory-policies"),
    "nft": ("firewall/nftables.conf", b"dport", b"dprt"),
    "nft-packets": ("firewall/nftables.conf", b"ip saddr 10.0.0.0/8 tcp dport 22", b"tcp dport 22"),
    "nginx": ("tls/nginx.conf", b"ssl_protocols", b"ssl_protocol"),
    "haproxy": ("tls/haproxy.cfg", b"default_backend api", b"default_back_end api"),
    "tls-handshakes": ("docker/nginx.conf", b"ssl_protocols TLSv1.2 TLSv1.3", b"ssl_protocols TLSv1.2"),
    # alerts that are to be told are dropped: what Prometheus and Alertmanager each take, and only both together show
    "alert-chain": ("prometheus/prometheus.yml", b"regex: none", b"regex: notify"),
    "hadolint": ("docker/Dockerfile", b"USER 10001:10001", b"USER root"),
    "docker-compose": ("docker/compose.yaml", b"      - internal\n", b"      - gone\n"),
    "kubernetes-models": ("kubernetes/41-api.yaml", b"containerPort:", b"containerPrt:"),
    "gateway-definitions": ("kubernetes/50-gateway.yaml", b"certificateRefs:", b"certificateRef:"),
    "checkov": ("kubernetes/41-api.yaml", b"readOnlyRootFilesystem: true", b"readOnlyRootFilesystem: false"),
    "trivy": ("kubernetes/41-api.yaml", b"allowPrivilegeEscalation: false", b"allowPrivilegeEscalation: true"),
    "kube-score": ("kubernetes/41-api.yaml", b"readOnlyRootFilesystem: true", b"readOnlyRootFilesystem: false"),
    "amlint": ("alertmanager/alertmanager.yml", b"receiver: failover", b"receiver: nobody"),
    "yamllint": ("qdrant/config.yaml", b"http_port: 6333", b"http_port: 6333\n  http_port: 6334"),
}
# trivy takes a second for each document, the chain 12 for each run: they are asked for all shapes at once
SLOW = ("trivy", "alert-chain")
PASSED: Passed = {}


def changed(bundle: Bundle, path: str, old: bytes, new: bytes) -> Bundle:
    documents = [
        Document(found.path, found.data.replace(old, new), found.media_type, found.reads)
        if str(found.path) == path
        else found
        for found in bundle.documents
    ]
    assert any(one.data != other.data for one, other in zip(documents, bundle.documents, strict=True))
    return bundle_of(tuple(documents))


@pytest.mark.timeout(900)  # all tools one after the other, on a machine that is busy with something else
def test_no_tool_refuses_a_document_of_the_example(tmp_path: Path) -> None:
    """Each one that is installed judges all that it applies to."""
    report = prove_release(render_bundle(load_spec(EXAMPLE).spec), TOOLS)

    installed = {tool.name for tool in TOOLS if tool.version() is not None}
    found = {key: row for key, row in report.outcomes.items() if row.verdict != "passed" and key[1] in installed}
    assert found == {}
    assert report.exit_code == 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_tool_refuses_the_broken_twin(tmp_path: Path, name: str) -> None:
    """A tool that takes everything proves nothing."""
    tool = next(tool for tool in TOOLS if tool.name == name)
    if tool.version() is None:
        pytest.skip(f"not installed: {tool.install}")

    spec = spec_of("gateway") if name == "gateway-definitions" else load_spec(EXAMPLE).spec

    report = prove_release(changed(render_bundle(spec), *BROKEN[name]), (tool,))

    assert report.exit_code == 13, report.outcomes


@pytest.mark.parametrize("name", CHANGES)
def test_no_tool_refuses_another_shape_of_the_stack(tmp_path: Path, name: str) -> None:
    """What the tools say of one spec they must say of others. Most bytes are those of another shape, and asked once."""
    tools = [tool for tool in TOOLS if tool.name not in SLOW]

    report = prove_release(render_bundle(spec_of(name)), tools, passed=PASSED)

    assert {
        key: row for key, row in report.outcomes.items() if row.verdict not in ("passed", "absent", "unjudged")
    } == {}


def test_trivy_refuses_no_document_of_any_shape_of_the_stack(tmp_path: Path) -> None:
    program = found_program("trivy")
    if program is None:
        pytest.skip("not installed")
    for number, name in enumerate(CHANGES):
        write_directory(render_bundle(spec_of(name)), tmp_path / "all" / str(number))
    argv = [program, "config", "--quiet", "--skip-check-update", "--cache-dir", str(tmp_path / "cache")]

    done = run_program([*argv, "--format", "json", "all"], tmp_path, 300)

    results = json.loads(done.stdout)["Results"]
    found = {(one["Target"], two["ID"]) for one in results for two in one.get("Misconfigurations") or []}
    assert {(path, rule) for path, rule in found if ("trivy", rule) not in WAIVERS} == set()
    assert len(results) >= 8 * len(CHANGES), "it did not look at all of them"


@pytest.mark.parametrize("name", ["checkov", "trivy", "kube-score"])
def test_exactly_the_written_waivers_are_used_for_the_default_spec(tmp_path: Path, name: str) -> None:
    """A waiver that nothing needs any more would hide the next finding of its rule."""
    tool = next(tool for tool in TOOLS if tool.name == name)
    if tool.version() is None:
        pytest.skip(f"not installed: {tool.install}")

    report = prove_release(render_bundle(spec_of("default")), (tool,))

    used = {waiver.rule for outcome in report.outcomes.values() for waiver in outcome.waived}
    assert used == {rule for of, rule in WAIVERS if of == name}


@pytest.mark.parametrize("name", [tool.name for tool in TOOLS])
def test_a_tool_opens_no_document_that_its_row_does_not_name(tmp_path: Path, name: str) -> None:
    """Else nobody would ask it about a broken twin of one that it opens. The kernel's access times tell."""
    tool = next(tool for tool in TOOLS if tool.name == name)
    bundle = render_bundle(spec_of("gateway" if name == "gateway-definitions" else "default"))
    judged = next(document.path for document in bundle.documents if tool.applies(document.path))
    directory = tmp_path / "release"
    write_directory(bundle, directory)
    if not (tool.version() and opened_by(lambda: (directory / judged).read_bytes(), bundle, directory)):
        pytest.skip("not installed, or this file system keeps no access times")

    opened = opened_by(lambda: tool.check(directory, (judged,), 300), bundle, directory)

    named = {path for path in map(PurePosixPath, bundle.by_path) if any(path.match(glob) for glob in tool.opens)}
    assert opened == named | {judged}


def opened_by(act: Callable[[], object], bundle: Bundle, directory: Path) -> set[PurePosixPath]:
    """Return the documents of a directory whose bytes were read. An access time before the last change is renewed."""
    paths = {document.path: directory / document.path for document in bundle.documents}
    for path in paths.values():
        os.utime(path, (1, 2))
    act()
    return {name for name, path in paths.items() if path.stat().st_atime != 1}


def test_the_client_does_offer_tls_1_1(tmp_path: Path) -> None:
    """Else a refusal of TLS 1.1 would be the client's own, and prove nothing of the server."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key", "-out", "chain"],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            raw, _ = listener.accept()
            with raw, context.wrap_socket(raw, server_side=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        assert accepts(listener.getsockname()[1], ssl.TLSVersion.TLSv1_1, tmp_path / "chain")
        thread.join(30)
