"""Every outside tool that is installed takes every document of the example spec, and refuses a broken one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import Bundle, bundle_of, render_bundle
from synapse_ops.manifests.document import Document
from synapse_ops.operations.prove_release import known_tools, prove_release
from synapse_ops.spec import load_spec

pytestmark = pytest.mark.tools
NOW = datetime(2026, 11, 24, 5, 0, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[2] / "examples" / "synapse" / "infrastructure.yaml"
BROKEN = {
    "promtool-check-config": ("prometheus/prometheus.yml", b"scrape_interval", b"scrape_intervall"),
    "promtool-check-rules": ("prometheus/rules/alerts.yml", b'for: "', b'four: "'),
    "promtool-test-rules": ("prometheus/rules/alerts.yml", b"up == 0", b"up == 2"),
    "amtool-check-config": ("alertmanager/alertmanager.yml", b"receiver:", b"reciever:"),
    "amtool-routes": ("alertmanager/alertmanager.yml", b"critical", b"criticall"),
    "nft": ("firewall/nftables.conf", b"dport", b"dprt"),
}


def changed(bundle: Bundle, path: str, old: bytes, new: bytes) -> Bundle:
    documents = [
        Document(found.path, found.data.replace(old, new), found.media_type, found.reads)
        if str(found.path) == path
        else found
        for found in bundle.documents
    ]
    assert any(one.data != other.data for one, other in zip(documents, bundle.documents, strict=True))
    return bundle_of(tuple(documents))


def test_no_tool_refuses_a_document_of_the_example(tmp_path: Path) -> None:
    """Each one that is installed judges all that it applies to."""
    report = prove_release(render_bundle(load_spec(EXAMPLE).spec), known_tools(), None, tmp_path, now=NOW)

    found = {key: row for key, row in report.outcomes.items() if row.verdict not in ("passed", "absent")}
    assert found == {}
    assert report.exit_code == 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_tool_refuses_the_broken_twin(tmp_path: Path, name: str) -> None:
    """A tool that takes everything proves nothing."""
    tool = next(tool for tool in known_tools() if tool.name == name)
    if tool.version() is None:
        pytest.skip(f"not installed: {tool.install}")

    report = prove_release(
        changed(render_bundle(load_spec(EXAMPLE).spec), *BROKEN[name]), (tool,), None, tmp_path, now=NOW
    )

    assert report.exit_code == 13, report.outcomes
