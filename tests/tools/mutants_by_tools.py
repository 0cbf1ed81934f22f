"""Which outside tools refuse which bad twin, from real runs, as tests/tools/mutants_by_tools.json keeps it.

    python -m tests.tools.mutants_by_tools         asks what is not recorded yet
    python -m tests.tools.mutants_by_tools --all   asks everything again

A tool is asked about a twin when it judges or opens the changed document. What it said holds for these bytes of that
document and this version of the tool; either changed, it is asked again. Each twin is saved when it is done, so that a
run that was stopped goes on where it was. A refusal counts where the tool takes the unchanged rendering.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.operations.release.render import write_directory
from tests.manifests.mutants import MUTANTS, Mutant
from tests.manifests.specs import spec_of
from tests.tools.warm_python import warmed
from tools import TOOLS
from tools.tool import Tool, ToolOutcome

DATA = Path(__file__).with_suffix(".json")
TIMEOUT_S = 300.0
AT_ONCE = 2


@dataclass(frozen=True)
class Row:
    """sha256: of the changed document. The rest: names of tools, sorted, each that was asked in one of them.

    unjudged: those without a rule for such a document. stopped: those that were stopped or left no report that can be
    read, which is neither a refusal nor a pass.
    """

    sha256: str
    refused: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()

    @property
    def said(self) -> tuple[tuple[str, ...], ...]:
        return (self.refused, self.passed, self.unjudged, self.stopped)

    @property
    def asked(self) -> frozenset[str]:
        return frozenset(name for names in self.said for name in names)

    def without(self, tools: frozenset[str]) -> Row:
        """Return it as if these tools had not been asked."""
        return Row(self.sha256, *(tuple(name for name in names if name not in tools) for names in self.said))

    def joined(self, other: Row) -> Row:
        """Return what both know of the same bytes."""
        return Row(self.sha256, *(tuple(sorted(one + two)) for one, two in zip(self.said, other.said, strict=True)))


@dataclass(frozen=True)
class Recorded:
    """versions: of each tool, as it was last asked. rows: by the twin's name."""

    versions: Mapping[str, str]
    rows: Mapping[str, Row]


def read_recorded() -> Recorded:
    """Return the committed data; nothing when there is none."""
    if not DATA.exists():
        return Recorded({}, {})
    found = json.loads(DATA.read_text(encoding="utf-8"))
    return Recorded(
        found["versions"],
        {
            name: Row(row.pop("sha256"), **{said: tuple(names) for said, names in row.items()})
            for name, row in found["twins"].items()
        },
    )


def write_recorded(recorded: Recorded) -> None:
    """Replace the data as a whole: one line a twin, in the order of MUTANTS."""
    order = [mutant.name for mutant in MUTANTS if mutant.name in recorded.rows]
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(asdict(recorded.rows[name]))}" for name in order)
    versions = json.dumps(dict(sorted(recorded.versions.items())))
    new = DATA.with_suffix(".new")
    new.write_text(f'{{\n  "versions": {versions},\n  "twins": {{\n{rows}\n  }}\n}}\n', encoding="utf-8")
    new.replace(DATA)


def still_true(recorded: Recorded, digests: Mapping[str, str], versions: Mapping[str, str]) -> Recorded:
    """Return what need not be asked again.

    digests: of each twin's changed document, by the twin's name. versions: of the tools that are here; what one said in
    another version is left out, what one that is absent said stays.
    """
    renewed = frozenset(name for name, version in versions.items() if recorded.versions.get(name, version) != version)
    rows = {name: row.without(renewed) for name, row in recorded.rows.items() if digests.get(name) == row.sha256}
    return Recorded({**recorded.versions, **versions}, rows)


def applicable(mutant: Mutant, tools: Iterable[Tool]) -> frozenset[str]:
    """Return the names of the tools that judge or open the changed document."""
    path = PurePosixPath(mutant.path)
    return frozenset(tool.name for tool in tools if tool.applies(path) or any(path.match(glob) for glob in tool.opens))


def digest_of_twin(mutant: Mutant, bundle: Bundle) -> str:
    """Return the sha256 of the changed document."""
    return mutant.of(bundle).by_path[mutant.path].digest


def judge(bundle: Bundle, path: PurePosixPath, tools: Sequence[Tool]) -> dict[str, list[ToolOutcome]]:
    """Return what each tool says of a document and, where it opens that with others, of all that it judges."""
    said: dict[str, list[ToolOutcome]] = {}
    with tempfile.TemporaryDirectory(prefix="twin-") as scratch:
        directory = Path(scratch) / "release"
        write_directory(bundle, directory)
        for tool in tools:
            opened = any(path.match(glob) for glob in tool.opens)
            asked = (
                [document.path for document in bundle.documents if tool.applies(document.path)] if opened else [path]
            )
            said[tool.name] = list(tool.check(directory, tuple(asked), TIMEOUT_S).values())
    return said


def row_of(sha256: str, said: Mapping[str, Sequence[ToolOutcome]]) -> Row:
    """Return the row: a tool refuses a twin when it refuses any of its documents, and passes it when it passes all."""
    found: dict[str, list[str]] = {"failed": [], "passed": [], "unjudged": [], "stopped": []}
    for name, outcomes in sorted(said.items()):
        verdicts = {"stopped" if one.verdict in ("timed-out", "broken") else one.verdict for one in outcomes}
        found[next((one for one in ("failed", "stopped", "passed") if one in verdicts), "unjudged")].append(name)
    return Row(sha256, *map(tuple, found.values()))


def judge_twin(mutant: Mutant, bundle: Bundle, tools: Sequence[Tool]) -> Row:
    """Return what these tools say of a twin."""
    twin = mutant.of(bundle)
    return row_of(twin.by_path[mutant.path].digest, judge(twin, PurePosixPath(mutant.path), tools))


def ask_what_is_missing(recorded: Recorded, bundle: Bundle, progress: Callable[[str], None]) -> list[str]:
    """Have every twin judged by every tool that applies and is not recorded, and save each twin when it is done.

    Returns what could not be asked: a tool is absent, or does not take the unchanged document either.
    """
    installed = [tool for tool in TOOLS if tool.name in recorded.versions]
    rows = {mutant.name: recorded.rows.get(mutant.name, Row(digest_of_twin(mutant, bundle))) for mutant in MUTANTS}
    wanted = {mutant: applicable(mutant, TOOLS) - rows[mutant.name].asked for mutant in MUTANTS}
    absent = frozenset[str]().union(*wanted.values()) - {tool.name for tool in installed}
    obstacles = [f"{tool.name} is not installed: {tool.install}" for tool in TOOLS if tool.name in absent]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {
            mutant: [tool for tool in installed if tool.name in names]
            for mutant, names in wanted.items()
            if names - absent
        }
        paths = {mutant.path: tools for mutant, tools in asked.items()}
        unchanged = {path: pool.submit(judge, bundle, PurePosixPath(path), tools) for path, tools in paths.items()}
        rows_of_unchanged = {path: row_of("", said.result()) for path, said in unchanged.items()}
        refusing = {path: {*row.refused, *row.stopped} for path, row in rows_of_unchanged.items()}
        obstacles += [
            f"{name} does not take the unchanged {path}" for path, names in refusing.items() for name in names
        ]
        futures = {
            pool.submit(
                judge_twin, mutant, bundle, [tool for tool in tools if tool.name not in refusing[mutant.path]]
            ): mutant
            for mutant, tools in asked.items()
        }
        for number, future in enumerate(as_completed(futures), 1):
            name = futures[future].name
            rows[name] = rows[name].joined(future.result())
            write_recorded(Recorded(recorded.versions, rows))
            progress(f"{number}/{len(futures)} {name}: {', '.join(rows[name].refused) or 'none'}")
    finally:
        pool.shutdown(cancel_futures=True)  # what is done is saved
    write_recorded(Recorded(recorded.versions, rows))
    return obstacles


def main() -> int:
    """Ask what is not recorded. Status 14: something could not be asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--all", action="store_true", help="ask everything again")
    bundle = render_bundle(spec_of("default"))
    recorded = Recorded({}, {}) if parser.parse_args().all else read_recorded()
    digests = {mutant.name: digest_of_twin(mutant, bundle) for mutant in MUTANTS}
    names = frozenset[str]().union(*(applicable(mutant, TOOLS) for mutant in MUTANTS))
    with tempfile.TemporaryDirectory(prefix="warm-") as scratch, warmed(Path(scratch)):
        versions = {tool.name: found for tool in TOOLS if tool.name in names and (found := tool.version())}
        obstacles = ask_what_is_missing(still_true(recorded, digests, versions), bundle, print)
    for line in obstacles:
        print(line, file=sys.stderr)
    return 14 if obstacles else 0


if __name__ == "__main__":
    sys.exit(main())
