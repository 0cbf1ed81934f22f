"""Each finding reaches the page of the document that it names."""

from __future__ import annotations

import pytest

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import judge
from tests.manifests.specs import CHANGES, spec_of


@pytest.mark.parametrize("name", CHANGES)
def test_every_document_belongs_to_one_target(name: str) -> None:
    """The paths of all targets are those of the bundle, each once: no finding is lost, none is shown twice."""
    spec = spec_of(name)

    judged = judge(spec)

    of_targets = [path for made in judged.by_target.values() for path in made.by_path]
    assert sorted(of_targets) == sorted(render_bundle(spec).by_path)
    assert {row.path for row in judged.findings} <= {*of_targets, "*"}
