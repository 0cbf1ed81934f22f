"""CI runs a judge again when a byte of what it judges, or of itself, is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from synapse_ops.manifests.bundle import Bundle, bundle_of, render_bundle
from synapse_ops.spec import Spec
from tests import judged
from tests.judged import JUDGES, Judge, digest_of

ROOT = Path(__file__).parents[1]


def test_another_byte_of_a_document_or_of_a_judge_is_another_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one document in one of thirty specs, of a source, and a source more; and of nothing else."""
    source = tmp_path / "tests" / "cluster" / "test_apply.py"
    source.parent.mkdir(parents=True)
    source.write_text("assert True")
    monkeypatch.setattr(judged, "ROOT", tmp_path)
    monkeypatch.setattr(judged, "CHANGES", {"default": {}, "gateway": {}})
    judge = Judge(("kubernetes/*",), ("tests/cluster/*.py",))
    before = digest_of(judge)

    source.write_text("assert 1")
    changed = digest_of(judge)
    (source.parent / "test_more.py").touch()
    more = digest_of(judge)
    with monkeypatch.context() as rendering:
        rendering.setattr(judged, "render_bundle", with_a_byte_more("kubernetes/50-gateway.yaml"))
        other = digest_of(judge)
    with monkeypatch.context() as rendering:
        rendering.setattr(judged, "render_bundle", with_a_byte_more("redis/redis.conf"))
        elsewhere = digest_of(judge)

    assert len({before, changed, more, other}) == 4
    assert elsewhere == more


def with_a_byte_more(path: str) -> object:
    def render(spec: Spec) -> Bundle:
        documents = render_bundle(spec).documents
        return bundle_of(
            tuple(replace(one, data=one.data + b"#") if str(one.path) == path else one for one in documents)
        )

    return render


@pytest.mark.parametrize("target", JUDGES)
def test_a_judge_has_sources_and_a_target_that_keeps_its_pass(target: str) -> None:
    """A glob that matches nothing would never see a change."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert all(any(ROOT.glob(glob)) for glob in JUDGES[target].sources)
    assert f"tests.judged {target} --passed" in makefile
    assert target in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
