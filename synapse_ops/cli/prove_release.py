"""`synapse-ops prove-release`: outside tools judge every rendered document, and what they find is recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options

if TYPE_CHECKING:
    from synapse_ops.domain.attestation import ToolOutcome
    from synapse_ops.operations.prove_release import ProofsReport

_WORDS = {"passed": "ok", "failed": "REFUSED", "absent": "not installed", "timed-out": "NOT JUDGED"}


@click.command()
@click.option("--tool", "names", multiple=True, metavar="NAME", help="Only this tool; may be given several times.")
@click.option("--local", "only_local", is_flag=True, help="Record in the state directory only, not in the store.")
@click.option("--installed", "all_installed", is_flag=True, help="Exit 14 also when a tool is not installed.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds for each tool.")
@click.option("--json", "as_json", is_flag=True, help="Print every outcome as JSON.")
@stack_options
def command(
    place: Place, names: tuple[str, ...], only_local: bool, all_installed: bool, timeout_s: float | None, as_json: bool
) -> None:
    """Prove the rendered documents with tools that others wrote, and record each verdict by the document's digest.

    Exit code 13 when a tool refuses a document; 14 when one that is installed did not judge it, when none is installed,
    or when a proof of manifests.require_proofs lacks; else 0. A tool that is not installed proves nothing.

    \b
    Examples:
      synapse-ops prove-release
      synapse-ops prove-release --tool hadolint --tool trivy --local
      synapse-ops prove-release --json
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.prove_release import TOOL_TIMEOUT_S, chosen_tools, known_tools, prove_release
    from synapse_ops.operations.render import render

    tools = chosen_tools(known_tools(), names)
    stack = place.stack()
    with progress_bar() as progress:
        report = prove_release(
            render(stack.spec).bundle,
            tools,
            None if only_local else stack.release_store(),
            stack.state_dir,
            progress,
            now=datetime.now(UTC),
            required=stack.spec.manifests.require_proofs,
            timeout_s=timeout_s or TOOL_TIMEOUT_S,
        )
    exit_code = report.exit_code
    if all_installed and exit_code == 0 and any(row.verdict == "absent" for row in report.outcomes.values()):
        exit_code = 14
    click.echo(json.dumps(as_data(report, exit_code), ensure_ascii=False, indent=2) if as_json else as_text(report))
    raise SystemExit(exit_code)


def as_data(report: ProofsReport, exit_code: int) -> dict[str, Any]:
    """Return a report as its stable JSON form."""
    return {
        "digest": report.bundle.digest,
        "exit_code": exit_code,
        "outcomes": [
            {
                "path": path,
                "sha256": report.bundle.by_path[path].digest,
                "tool": tool,
                "version": outcome.version,
                "verdict": outcome.verdict,
                "findings": list(outcome.findings),
                "waived": [waiver.model_dump() for waiver in outcome.waived],
                "duration_s": round(outcome.duration_s, 3),
            }
            for (path, tool), outcome in report.outcomes.items()
        ],
        "proofs": [
            {"path": proof.path, "tool": proof.tool, "kind": proof.kind, "verdict": proof.verdict}
            for proof in report.proofs
        ],
        "obstacles": list(report.obstacles),
    }


def as_text(report: ProofsReport) -> str:
    """Return the table of documents and tools, then every finding, then the sum."""
    outcomes = report.outcomes
    width = max((len(path) for path, _ in outcomes), default=0)
    lines = []
    for document in report.bundle.documents:
        path = str(document.path)
        of_document = [(tool, found) for (of, tool), found in outcomes.items() if of == path]
        if of_document:
            lines.append(f"{path:<{width}}  {_by_verdict(of_document)}")
    lines += [
        f"{_WORDS[found.verdict]}: {path}: {tool}: {finding}"
        for (path, tool), found in outcomes.items()
        if found.verdict in ("failed", "timed-out")
        for finding in found.findings or ("no finding named",)
    ]
    absent = {tool: found.findings[0] for (_, tool), found in outcomes.items() if found.verdict == "absent"}
    lines += [f"{tool}: {why}" for tool, why in sorted(absent.items())]
    waived = {(tool, row.rule, row.reason) for (_, tool), found in outcomes.items() for row in found.waived}
    lines += [f"waived: {tool} {rule}: {reason}" for tool, rule, reason in sorted(waived)]
    lines += [f"required: {obstacle}" for obstacle in report.obstacles]
    counts = [f"{sum(row.verdict == verdict for row in outcomes.values())} {word}" for verdict, word in _WORDS.items()]
    judged = len({path for path, _ in outcomes})
    counts.append(f"{len(report.bundle.documents) - judged} documents without a tool among these")
    return "\n".join([*lines, f"{len(report.bundle.documents)} documents: {', '.join(counts)}"])


def _by_verdict(found: list[tuple[str, ToolOutcome]]) -> str:
    parts = []
    for verdict, word in _WORDS.items():
        tools = [tool for tool, outcome in found if outcome.verdict == verdict]
        if tools:
            parts.append(f"{word}: {', '.join(tools)}")
    return "; ".join(parts)
