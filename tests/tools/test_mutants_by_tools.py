"""Every bad twin has a recorded verdict of each outside tool that reads it, and they still say the same."""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Mapping

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
SAMPLE_SIZE = 12


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return render_bundle(spec_of("default"))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return read_recorded()


def test_every_twin_has_a_verdict_of_every_tool_that_reads_it(recorded: Recorded) -> None:
    """Whether its bytes have changed since is not asked here: no tool can be, and a change is no fault."""
    wanted = {mutant.name: applicable(mutant, TOOLS) for mutant in MUTANTS}

    assert {name: row.asked for name, row in recorded.rows.items()} == wanted, AGAIN
    assert set(recorded.versions) == frozenset().union(*wanted.values()), AGAIN


def sample_of(digests: Mapping[str, str], recorded: Recorded) -> list[str]:
    """Return the names of the twins to ask about: those whose bytes have changed first, then others each day."""
    read = sorted(name for name, row in recorded.rows.items() if row.asked)
    drawn = random.Random(SEED).sample(read, len(read))
    return sorted(drawn, key=lambda name: digests[name] == recorded.rows[name].sha256)[:SAMPLE_SIZE]


def test_the_twins_whose_bytes_have_changed_are_asked_about_first() -> None:
    rows = {f"twin {number}": Row("recorded", passed=("finder",)) for number in range(30)}
    digests = dict.fromkeys(rows, "recorded") | {"twin 7": "changed", "twin 19": "changed"}

    sample = sample_of(digests, Recorded({}, {**rows, "unread": Row("old")}))

    assert set(sample[:2]) == {"twin 7", "twin 19"}
    assert len(set(sample)) == SAMPLE_SIZE


@pytest.fixture(scope="module")
def sample(bundle: Bundle, recorded: Recorded) -> list[Mutant]:
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    digests = {name: digest_of_twin(mutant, bundle) for name, mutant in by_name.items()}
    return [by_name[name] for name in sample_of(digests, recorded)]


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    """Return the version of each outside tool that is installed; checkov takes seconds to tell it."""
    return {tool.name: version for tool in TOOLS if (version := tool.version())}


@pytest.mark.tools
@pytest.mark.parametrize("number", range(SAMPLE_SIZE))
def test_outside_tools_say_of_a_bad_twin_what_is_recorded(
    number: int, sample: list[Mutant], bundle: Bundle, recorded: Recorded, versions: dict[str, str]
) -> None:
    """The verdicts are compared, not the bytes. SYNAPSE_TEST_SEED draws the twins of another day or word again."""
    mutant = sample[number]
    row, names = recorded.rows[mutant.name], applicable(mutant, TOOLS)
    here = [tool for tool in TOOLS if tool.name in names and tool.name in versions]
    if not here:
        pytest.skip("no outside tool that is installed reads this document")

    found = judge_twin(mutant, bundle, here)

    other = {tool.name: (recorded.versions[tool.name], versions[tool.name]) for tool in here}
    other = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
    words = f"{mutant.name}; SYNAPSE_TEST_SEED={SEED}; versions recorded and here: {other or 'the same'}; {AGAIN}"
    assert found.said == row.without(row.asked - {tool.name for tool in here}).said, words


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
