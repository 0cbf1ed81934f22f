"""Findings reach the page of the document that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release_review import review_release
from synapse_ops.operations.stack import open_stack
from synapse_ops.systems.local_processes import free_ports
from synapse_ops.systems.object_store import StoreAccess


def test_findings_are_told_while_the_store_of_proofs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules need no store; only what outside tools said is unknown, and says why."""
    [port] = free_ports(1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    path = tmp_path / "infrastructure.yaml"
    path.write_text(f"name: synapse\nobject_store: {{endpoint: 'http://127.0.0.1:{port}'}}\n")

    review = review_release(open_stack(path, tmp_path / "state"))

    assert [row for row in review.findings if row.severity == "error"] == []
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
    assert [row for row in review.findings if row.severity == "error"] == []
