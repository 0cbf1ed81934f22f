"""Findings reach the page of the document that they name, as a gate's or as a rule's."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import bundle_of, render_bundle
from synapse_ops.manifests.consistency import GATES, check_consistency
from synapse_ops.manifests.document import Document
from synapse_ops.operations.release_review import review_release
from synapse_ops.operations.stack import open_stack
from synapse_ops.systems.local_processes import free_ports
from synapse_ops.systems.object_store import StoreAccess
from tests.manifests.specs import spec_of


def broken(path: str, old: bytes, new: bytes) -> set[str]:
    """Return the rules that find a document changed so."""
    spec = spec_of("default")
    documents = []
    for document in render_bundle(spec).documents:
        data = document.data.replace(old, new) if str(document.path) == path else document.data
        assert str(document.path) != path or data != document.data
        documents.append(Document(document.path, data, document.media_type, document.reads))
    return {row.rule for row in check_consistency(bundle_of(tuple(documents)), spec) if row.path == path}


def test_gates_name_their_findings_by_their_own_names() -> None:
    """A finding is a gate's by its rule's name: one that called it otherwise would be shown as a rule's."""
    names = {gate.__name__ for gate in GATES}

    found = broken("prometheus/prometheus.yml", b"scrape_interval:", b"scrape_intervall:")
    found |= broken("kubernetes/41-api.yaml", b"terminationGracePeriodSeconds:", b"terminationGraceSeconds:")

    assert found & names == names


def test_findings_are_told_while_the_store_of_proofs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document's gates need no store; only what outside tools said is unknown, and says why."""
    [port] = free_ports(1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    path = tmp_path / "infrastructure.yaml"
    path.write_text(f"name: synapse\nobject_store: {{endpoint: 'http://127.0.0.1:{port}'}}\n")

    review = review_release(open_stack(path, tmp_path / "state"))

    assert review.gate_findings == ()
    assert "could not reach the object store" in review.unread
    assert {proof.verdict for proof in review.proofs} == {"unproven"}


def test_every_document_belongs_to_one_target(
    tmp_path: Path, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """The paths of all targets are those of the bundle, each once: no finding is lost, none is shown twice."""
    path = tmp_path / "infrastructure.yaml"
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {object_store_access.access_key}\n"
        f"aws_secret_access_key = {object_store_access.secret_key}\n"
    )
    path.write_text(
        f"name: synapse\nmanifests: {{destination: '{bucket_url}releases/'}}\n"
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'file:{credentials}'}}\n"
    )
    stack = open_stack(path, tmp_path / "state")

    review = review_release(stack)

    of_targets = [name for paths in review.paths.values() for name in paths]
    assert sorted(of_targets) == sorted(render_bundle(stack.spec).by_path)
    assert review.gate_findings == ()
