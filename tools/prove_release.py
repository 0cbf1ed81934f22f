"""Has outside tools judge every document that a spec renders to, and prints what each said.

    python -m tools.prove_release --spec examples/synapse/infrastructure.yaml
    python -m tools.prove_release --tool hadolint --tool trivy

The tools get the whole rendering as a directory, because documents refer to one another. Status 13: a tool refuses a
document. 14: one that is installed did not come to a verdict, or no tool passed any document. A tool that is not
installed, or has no rule for a document, proves nothing and stops nothing. `requirements/manifest-tools` installs them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from synapse_ops.errors import ConfigError, SynapseOpsError
from synapse_ops.manifests.bundle import Bundle
from synapse_ops.operations.release.render import render, write_directory
from synapse_ops.spec import load_spec
from tools import TOOLS
from tools.tool import Tool, ToolOutcome

TOOL_TIMEOUT_S = 300.0  # the slowest, checkov, takes some 20 s on two quiet cores
Passed = dict[str, ToolOutcome]  # by the digest of what the verdict rests on
_WORDS = {
    "passed": "passed",
    "failed": "REFUSED",
    "timed-out": "TIMED OUT",
    "broken": "NO REPORT",
    "unjudged": "not judged",
    "absent": "not installed",
}


@dataclass(frozen=True)
class ProofsReport:
    """What a run of the tools found. outcomes: by (path, tool), for every tool that applies to a document."""

    bundle: Bundle
    outcomes: Mapping[tuple[str, str], ToolOutcome]

    @property
    def exit_code(self) -> int:
        verdicts = {outcome.verdict for outcome in self.outcomes.values()}
        if "failed" in verdicts:
            return 13
        return 14 if verdicts & {"timed-out", "broken"} or "passed" not in verdicts else 0


def chosen_tools(tools: Sequence[Tool], names: Sequence[str]) -> tuple[Tool, ...]:
    """Return the tools of these names, all when none is named. Raises ConfigError naming the choices."""
    known = {tool.name: tool for tool in tools}
    strange = [name for name in names if name not in known]
    if strange:
        raise ConfigError(f"there is no tool {', '.join(strange)}", detail=f"there are: {', '.join(sorted(known))}")
    return tuple(known[name] for name in names) if names else tuple(tools)


def prove_release(
    bundle: Bundle, tools: Sequence[Tool], timeout_s: float = TOOL_TIMEOUT_S, *, passed: Passed | None = None
) -> ProofsReport:
    """Run the tools on the bundle and return what they found. timeout_s: for each tool.

    passed: of earlier calls, and added to: what a tool passed is not asked again while nothing that it opened changed.
    """
    outcomes: dict[tuple[str, str], ToolOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="prove-") as scratch:
        directory = Path(scratch) / "release"
        write_directory(bundle, directory)
        for tool in tools:
            outcomes |= _outcomes_of(tool, bundle, directory, timeout_s, {} if passed is None else passed)
    return ProofsReport(bundle, outcomes)


def _outcomes_of(
    tool: Tool, bundle: Bundle, directory: Path, timeout_s: float, passed: Passed
) -> dict[tuple[str, str], ToolOutcome]:
    """Return one outcome for every document that the tool applies to, whatever the tool does."""
    paths = tuple(document.path for document in bundle.documents if tool.applies(document.path))
    version, found = tool.version(), dict[PurePosixPath, ToolOutcome]()
    if version is None:
        missing = ToolOutcome(tool.name, "", "absent", (f"not installed: {tool.install}",), 0.0)
    else:
        missing = ToolOutcome(tool.name, version, "broken", ("it said nothing of this document",), 0.0)
        keys = {path: _key(tool, version, path, bundle) for path in paths}
        found |= {path: passed[key] for path, key in keys.items() if key in passed}
        asked = tuple(path for path in paths if path not in found)
        found |= tool.check(directory, asked, timeout_s) if asked else {}
        passed |= {keys[path]: found[path] for path in asked if path in found and found[path].verdict == "passed"}
    return {(str(path), tool.name): found.get(path, missing) for path in paths}


def _key(tool: Tool, version: str, path: PurePosixPath, bundle: Bundle) -> str:
    """Return the digest of all that a verdict rests on: the tool, and each document that it opens for this one."""
    opened = [one for one in bundle.documents if one.path == path or any(map(one.path.match, tool.opens))]
    parts = [tool.name, version, str(path), *(f"{one.path} {sha256(one.data).hexdigest()}" for one in opened)]
    return sha256("\n".join(parts).encode()).hexdigest()


def as_text(report: ProofsReport) -> str:
    """Return the table of documents and tools, then every finding, then the sum."""
    outcomes = report.outcomes
    width = max((len(path) for path, _ in outcomes), default=0)
    lines = []
    for path in report.bundle.by_path:
        of_document = [(tool, found) for (of, tool), found in outcomes.items() if of == path]
        if of_document:
            lines.append(f"{path:<{width}}  {_by_verdict(of_document)}")
    lines += [
        f"{_WORDS[found.verdict]}: {path}: {tool}: {finding}"
        for (path, tool), found in outcomes.items()
        if found.verdict in ("failed", "timed-out", "broken", "unjudged")
        for finding in found.findings or ("no finding named",)
    ]
    absent = {tool: found.findings[0] for (_, tool), found in outcomes.items() if found.verdict == "absent"}
    lines += [f"{tool}: {why}" for tool, why in sorted(absent.items())]
    waived = {(tool, row.rule, row.reason) for (_, tool), found in outcomes.items() for row in found.waived}
    lines += [f"waived: {tool} {rule}: {reason}" for tool, rule, reason in sorted(waived)]
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


def main() -> int:
    """Judge, print the table, and return the status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--spec", type=Path, default=Path("infrastructure.yaml"), help="the spec that is rendered")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME", help="only this tool; may be repeated")
    arguments = parser.parse_args()
    try:
        report = prove_release(render(load_spec(arguments.spec).spec).bundle, chosen_tools(TOOLS, arguments.tool))
    except SynapseOpsError as error:
        print("\n".join(filter(None, (f"error: {error.message}", error.detail, error.hint))), file=sys.stderr)
        return error.exit_code
    print(as_text(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
