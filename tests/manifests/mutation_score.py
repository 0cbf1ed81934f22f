"""docs/mutation-score.md: which rule of ours catches which bad twin.

python -m tests.manifests.mutation_score        writes it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.consistency import check_consistency
from tests.manifests.mutants import MUTANTS, Mutant
from tests.manifests.specs import spec_of

PAGE = Path(__file__).parents[2] / "docs" / "mutation-score.md"


def rules_that_catch(mutant: Mutant, bundle: Bundle) -> tuple[str, ...]:
    """Return the rules that find an error in a mutant, in their order."""
    findings = check_consistency(mutant.of(bundle), spec_of("default"))
    return tuple(dict.fromkeys(finding.rule for finding in findings if finding.severity == "error"))


def line_of(mutant: Mutant, rules: Sequence[str]) -> str:
    """Return the twin's row of the page."""
    return f"| {mutant.name} | {', '.join(f'`{rule}`' for rule in rules) or '**none**'} |"


def main() -> None:
    """Write the page."""
    bundle = render_bundle(spec_of("default"))
    rows = [(mutant, rules_that_catch(mutant, bundle)) for mutant in MUTANTS]
    caught = sum(bool(rules) for _, rules in rows)
    PAGE.write_text(
        "# Mutation score\n\n"
        "Written by `python -m tests.manifests.mutation_score`; tests/manifests/test_mutants.py holds each row.\n"
        f"{caught} of {len(rows)} bad twins of the default bundle are caught wherever it is rendered, before anything "
        "is written.\n\n| bad twin | caught by |\n|---|---|\n" + "\n".join(line_of(*row) for row in rows) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
