"""Each protection removed and each reference broken is seen, and each rule has seen one."""

from __future__ import annotations

import pytest

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.consistency import RULES
from tests.manifests.mutants import MUTANTS, PAGE, Mutant, rules_that_catch
from tests.manifests.specs import spec_of

NOTES_ONLY = {"connections_fit"}  # says what an operator may want so: it stops nothing


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return render_bundle(spec_of("default"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bad_twin_is_caught_as_the_page_says(mutant: Mutant, bundle: Bundle) -> None:
    """`python -m tests.manifests.mutants` writes the page again."""
    rules = rules_that_catch(mutant, bundle)

    assert rules
    assert f"| {mutant.name} | {', '.join(f'`{rule}`' for rule in rules)} |" in PAGE.read_text(encoding="utf-8")


def test_every_rule_has_caught_a_bad_twin() -> None:
    """A rule that no twin trips may be one that cannot fail."""
    page = PAGE.read_text(encoding="utf-8")

    assert {rule.__name__ for rule in RULES if f"`{rule.__name__}`" not in page} == NOTES_ONLY
