"""Whatever valid spec an operator writes, its documents hold together (hypothesis, over the JSON Schema of a spec)."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, note, settings

from synapse_ops.manifests.bundle import render_bundle
from tests.manifests.consistency.rules import errors_in
from tests.manifests.random_specs import made_valid, spec_texts


@settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(text=spec_texts())
def test_every_valid_spec_renders_to_documents_that_agree(text: str) -> None:
    """No rule finds an error, and the same spec gives the same bytes again."""
    loaded = made_valid(text)
    note(text)

    bundle = render_bundle(loaded)

    assert errors_in(bundle, loaded) == []
    assert render_bundle(loaded).digest == bundle.digest
