"""What outside tools said of each bad twin is of today's bytes, and they still say it."""

from __future__ import annotations

import datetime
import os
import random

import pytest

from synapse_ops.manifests.bundle import Bundle, render_bundle
from tests.manifests.mutants import MUTANTS, Mutant
from tests.manifests.specs import spec_of
from tests.tools.mutants_by_tools import (
    Recorded,
    Row,
    applicable,
    digest_of_twin,
    judge_twin,
    read_recorded,
    row_of,
    still_true,
)
from tools import TOOLS
from tools.tool import ToolOutcome, ToolVerdict

AGAIN = "python -m tests.tools.mutants_by_tools && python -m tests.manifests.mutation_score"
SEED = os.environ.get("SYNAPSE_TEST_SEED") or datetime.datetime.now(tz=datetime.UTC).date().isoformat()
SAMPLE = random.Random(SEED).sample([mutant for mutant in MUTANTS if applicable(mutant, TOOLS)], 12)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return render_bundle(spec_of("default"))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return read_recorded()


def test_what_outside_tools_said_is_of_exactly_these_twins(bundle: Bundle, recorded: Recorded) -> None:
    """Of the bytes that are rendered today, and by every tool that applies."""
    digests = {mutant.name: digest_of_twin(mutant, bundle) for mutant in MUTANTS}
    wanted = {mutant.name: applicable(mutant, TOOLS) for mutant in MUTANTS}

    assert {name: row.sha256 for name, row in recorded.rows.items()} == digests, AGAIN
    assert {name: row.asked for name, row in recorded.rows.items()} == wanted, AGAIN
    assert set(recorded.versions) == frozenset().union(*wanted.values()), AGAIN


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    """Return the version of each outside tool that is installed; checkov takes seconds to tell it."""
    return {tool.name: version for tool in TOOLS if (version := tool.version())}


@pytest.mark.tools
@pytest.mark.parametrize("mutant", SAMPLE, ids=lambda mutant: mutant.name)
def test_outside_tools_say_of_a_bad_twin_what_is_recorded(
    mutant: Mutant, bundle: Bundle, recorded: Recorded, versions: dict[str, str]
) -> None:
    """Twelve of the twins, other ones each day; SYNAPSE_TEST_SEED draws those of another day or word again."""
    row, names = recorded.rows[mutant.name], applicable(mutant, TOOLS)
    here = [tool for tool in TOOLS if tool.name in names and tool.name in versions]
    if not here:
        pytest.skip("no outside tool that is installed reads this document")

    found = judge_twin(mutant, bundle, here)

    other = {tool.name: (recorded.versions[tool.name], versions[tool.name]) for tool in here}
    other = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
    words = f"SYNAPSE_TEST_SEED={SEED}; versions recorded and here: {other or 'the same'}; {AGAIN}"
    assert found == row.without(row.asked - {tool.name for tool in here}), words


@pytest.mark.parametrize(
    ("verdicts", "row"),
    [
        (("passed", "failed"), Row("a", refused=("finder",))),
        (("absent", "passed"), Row("a", passed=("finder",))),
        (("absent",), Row("a", unjudged=("finder",))),
        (("unjudged",), Row("a", unjudged=("finder",))),
        (("passed", "timed-out"), Row("a", stopped=("finder",))),
        (("passed", "broken"), Row("a", stopped=("finder",))),
    ],
)
def test_a_tool_refuses_a_twin_when_it_refuses_any_of_its_documents(
    verdicts: tuple[ToolVerdict, ...], row: Row
) -> None:
    assert row_of("a", {"finder": [said(verdict) for verdict in verdicts]}) == row


def said(verdict: ToolVerdict) -> ToolOutcome:
    return ToolOutcome("finder", "1.0", verdict, (), 0.1)


def test_only_what_still_holds_is_not_asked_again() -> None:
    """A changed twin loses its row, a renewed tool its word; what an absent tool said of the same bytes stays."""
    rows = {"same": Row("a", ("trivy",), ("amlint", "checkov")), "changed": Row("b", ("trivy",)), "gone": Row("c")}
    recorded = Recorded({"trivy": "1.0", "amlint": "1.0", "checkov": "1.0"}, rows)

    kept = still_true(recorded, {"same": "a", "changed": "d"}, {"trivy": "1.0", "checkov": "1.1"})

    assert kept.rows == {"same": Row("a", ("trivy",), ("amlint",))}
    assert kept.versions == {"trivy": "1.0", "amlint": "1.0", "checkov": "1.1"}
