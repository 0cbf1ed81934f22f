"""Each protection removed and each reference broken is seen, and each rule has seen one."""

from __future__ import annotations

import pytest

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.consistency import no_document_holds_a_secret
from tests.manifests.consistency.rules import RENDERER_RULES
from tests.manifests.mutants import MUTANTS, Mutant, rewritten
from tests.manifests.mutation_score import PAGE, by_tool, line_of, rules_that_catch, summary
from tests.manifests.specs import spec_of
from tests.tools.mutants_by_tools import (
    Recorded,
    read_recorded,
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return render_bundle(spec_of("default"))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return read_recorded()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bad_twin_is_caught_as_the_page_says(mutant: Mutant, bundle: Bundle, recorded: Recorded) -> None:
    """`python -m tests.manifests.mutation_score` writes the page again."""
    rules = rules_that_catch(mutant, bundle)

    assert rules
    assert line_of(mutant, rules, recorded.rows[mutant.name]) in PAGE.read_text(encoding="utf-8").splitlines()


def test_every_rule_has_caught_a_bad_twin() -> None:
    """A rule that no twin trips may be one that cannot fail. Notes on a spec: test_consistency.py."""
    page = PAGE.read_text(encoding="utf-8")

    names = [rule.__name__ for rule in (*RENDERER_RULES, no_document_holds_a_secret)]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_counts_of_the_page_are_those_of_its_rows(recorded: Recorded) -> None:
    """That our rules catch a twin is held for each row above."""
    page = PAGE.read_text(encoding="utf-8").splitlines()

    assert f"[{len(MUTANTS)} deliberately broken variants]" in (PAGE.parents[1] / "README.md").read_text(
        encoding="utf-8"
    )
    assert summary([(("a rule",), recorded.rows[mutant.name]) for mutant in MUTANTS]) in page
    assert [line for line in by_tool(recorded) if line not in page] == []


def test_a_twin_is_written_as_the_renderer_writes(bundle: Bundle) -> None:
    """Else a tool might refuse a twin for its form, and nobody would know."""
    changed_as_yaml = {mutant.path for mutant in MUTANTS if mutant.path.startswith(("kubernetes/", "docker/compose"))}

    for path in {path for path in changed_as_yaml if path.endswith(".yaml")}:
        assert rewritten(bundle.by_path[path].text, lambda _: None) == bundle.by_path[path].text
