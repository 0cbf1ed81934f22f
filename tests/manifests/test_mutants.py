"""Each protection removed and each reference broken is seen, and each rule has seen one."""

from __future__ import annotations

import pytest

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.consistency import RULES
from tests.manifests.mutants import MUTANTS, Mutant, rewritten
from tests.manifests.mutants_by_tools import Recorded, Row, still_true
from tests.manifests.mutation_score import PAGE, line_of, rules_that_catch
from tests.manifests.specs import spec_of

NOTES_ONLY = {"connections_fit"}  # says what an operator may want so: it stops nothing


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return render_bundle(spec_of("default"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bad_twin_is_caught_as_the_page_says(mutant: Mutant, bundle: Bundle) -> None:
    """`python -m tests.manifests.mutation_score` writes the page again."""
    rules = rules_that_catch(mutant, bundle)

    assert rules
    assert line_of(mutant, rules) in PAGE.read_text(encoding="utf-8").splitlines()


def test_every_rule_has_caught_a_bad_twin() -> None:
    """A rule that no twin trips may be one that cannot fail."""
    page = PAGE.read_text(encoding="utf-8")

    assert {rule.__name__ for rule in RULES if f"`{rule.__name__}`" not in page} == NOTES_ONLY


def test_a_twin_is_written_as_the_renderer_writes(bundle: Bundle) -> None:
    """Else a tool might refuse a twin for its form, and nobody would know."""
    changed_as_yaml = {mutant.path for mutant in MUTANTS if mutant.path.startswith(("kubernetes/", "docker/compose"))}

    for path in {path for path in changed_as_yaml if path.endswith(".yaml")}:
        assert rewritten(bundle.by_path[path].text, lambda _: None) == bundle.by_path[path].text


def test_only_what_still_holds_is_not_asked_again() -> None:
    """A changed twin loses its row, a renewed tool its word; what an absent tool said of the same bytes stays."""
    rows = {"same": Row("a", ("trivy",), ("amlint", "checkov")), "changed": Row("b", ("trivy",)), "gone": Row("c")}
    recorded = Recorded({"trivy": "1.0", "amlint": "1.0", "checkov": "1.0"}, rows)

    kept = still_true(recorded, {"same": "a", "changed": "d"}, {"trivy": "1.0", "checkov": "1.1"})

    assert kept.rows == {"same": Row("a", ("trivy",), ("amlint",))}
    assert kept.versions == {"trivy": "1.0", "amlint": "1.0", "checkov": "1.1"}
