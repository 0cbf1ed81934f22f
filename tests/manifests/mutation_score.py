"""docs/mutation-score.md: which rule catches which broken variant of the bundle, and which outside tool would.

python -m tests.manifests.mutation_score        writes it; `python -m tests.tools.mutants_by_tools` comes first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synapse_ops.manifests.bundle import Bundle, render_bundle
from tests.manifests.consistency.rules import errors_in
from tests.manifests.mutants import MUTANTS, Mutant
from tests.manifests.specs import spec_of
from tests.tools.mutants_by_tools import Recorded, Row, read_recorded

PAGE = Path(__file__).parents[2] / "docs" / "mutation-score.md"
_HEAD = """\
# Mutation score

Deliberately broken variants of the default bundle: in each, one protection is removed or one reference broken.

- "Caught by": the rules that find it. Those below tests/manifests/consistency test the renderers, over many specs;
  `no_document_holds_a_secret` also runs wherever a bundle is rendered. `python -m tests.manifests.mutation_score`
  writes this page, and tests/manifests/test_mutants.py holds each row.
- "Outside tools": those that refuse it and accept the unchanged document. Every tool that judges or opens the changed
  document was asked, by `python -m tests.tools.mutants_by_tools`; `make prove-release` asks again about some of
  them, others each day. "No tool" stands where none of them reads such a document.
"""


def rules_that_catch(mutant: Mutant, bundle: Bundle) -> tuple[str, ...]:
    """Return the rules that find an error in a mutant, in their order."""
    return tuple(dict.fromkeys(finding.rule for finding in errors_in(mutant.of(bundle), spec_of("default"))))


def line_of(mutant: Mutant, rules: Sequence[str], row: Row) -> str:
    """Return the twin's row of the page."""
    tools = _names(row.refused) or ("none" if row.asked else "no tool")
    return f"| {mutant.name} | {_names(rules) or '**none**'} | {tools} |"


def summary(caught: Sequence[tuple[Sequence[str], Row]]) -> str:
    """Return the counts, of the rules and the row of each twin."""
    ours = sum(bool(rules) for rules, _ in caught)
    theirs = sum(bool(row.refused) for _, row in caught)
    both = sum(bool(rules and row.refused) for rules, row in caught)
    read = sum(bool(row.asked) for _, row in caught)
    return (
        f"Of {len(caught)} broken variants our rules catch **{ours}**, at least one outside tool catches **{theirs}**, "
        f"and **{both}** are caught by both. {read} change a document that some outside tool reads."
    )


def by_tool(recorded: Recorded) -> list[str]:
    """Return the lines of a table: how many twins each tool was asked about, and how many it refused."""
    rows = recorded.rows.values()
    return [
        f"| {tool} {version} | {sum(tool in row.asked for row in rows)} | {sum(tool in row.refused for row in rows)} |"
        for tool, version in sorted(recorded.versions.items())
    ]


def page_of(rules: Mapping[str, Sequence[str]], recorded: Recorded) -> str:
    """Return the page. rules: those that catch each twin, by its name."""
    caught = [(rules[mutant.name], recorded.rows[mutant.name]) for mutant in MUTANTS]
    lines = [line_of(mutant, *one) for mutant, one in zip(MUTANTS, caught, strict=True)]
    tools = ["| outside tool | asked about | refused |", "|---|---|---|", *by_tool(recorded)]
    twins = ["| broken variant | caught by | outside tools |", "|---|---|---|", *lines]
    return "\n".join([_HEAD, summary(caught), "", *tools, "", *twins, ""])


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Write the page."""
    bundle = render_bundle(spec_of("default"))
    rules = {mutant.name: rules_that_catch(mutant, bundle) for mutant in MUTANTS}
    PAGE.write_text(page_of(rules, read_recorded()), encoding="utf-8")


if __name__ == "__main__":
    main()
