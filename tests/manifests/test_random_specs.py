"""Whatever valid spec an operator writes, its documents hold together (hypothesis, over the JSON Schema of a spec)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from synapse_ops.manifests.bundle import render_bundle
from tests.manifests.consistency.rules import errors_in
from tests.manifests.random_specs import made_valid, spec_texts


def _examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@_examples(15)
@given(text=spec_texts())
def test_a_few_valid_specs_render_to_documents_that_agree(text: str) -> None:
    _documents_agree(text)


@pytest.mark.scenario
@_examples(60)
@given(text=spec_texts())
def test_every_valid_spec_renders_to_documents_that_agree(text: str) -> None:
    _documents_agree(text)


def _documents_agree(text: str) -> None:
    """No rule finds an error, and the same spec gives the same bytes again."""
    loaded = made_valid(text)
    note(text)

    bundle = render_bundle(loaded)

    assert errors_in(bundle, loaded) == []
    assert render_bundle(loaded).digest == bundle.digest
