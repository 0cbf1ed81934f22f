"""Has outside tools judge the documents of a release, and records what each found, by the documents' digests.

The tools get the whole rendering as a directory, because documents refer to one another. One that is not installed
proves nothing and stops nothing here; one that was stopped, or said nothing of a document it applies to, leaves that
document unproven, which the exit code tells.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from synapse_ops.domain.attestation import (
    Attestation,
    ToolOutcome,
    ToolProof,
    attestation_of,
    digest_of,
    judge_proofs,
    obstacles,
)
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError, DeadlineExceeded, ToolFailed
from synapse_ops.manifests.bundle import Bundle
from synapse_ops.operations.attestations import keep_attestations, read_attestations
from synapse_ops.operations.render import write_directory

if TYPE_CHECKING:
    from synapse_ops.systems.object_store import ObjectStore

TOOL_TIMEOUT_S = 300.0  # the slowest, checkov, takes some 20 s on two quiet cores


class ManifestTool(Protocol):
    """An outside tool. version: None where it is not installed. install: how to get it, for the operator.

    opens: globs of the documents that it opens whichever it judges; none where it opens only what it judges.
    """

    @property
    def name(self) -> str: ...
    @property
    def install(self) -> str: ...
    @property
    def opens(self) -> tuple[str, ...]: ...
    def applies(self, path: PurePosixPath, /) -> bool: ...
    def version(self) -> str | None: ...
    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]: ...


@dataclass(frozen=True)
class ProofsReport:
    """What a run of the tools found. outcomes: by (path, tool), for every tool that applies to a document.

    proofs: the state after it, of all tools, with what was recorded before. obstacles: why the spec's required proofs
    do not let this release be used.
    """

    bundle: Bundle
    outcomes: Mapping[tuple[str, str], ToolOutcome]
    proofs: tuple[ToolProof, ...]
    obstacles: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """13: a tool refuses a document. 14: one did not judge it, none is there at all, or a required proof lacks."""
        verdicts = {outcome.verdict for outcome in self.outcomes.values()}
        if "failed" in verdicts:
            return 13
        return 14 if "timed-out" in verdicts or "passed" not in verdicts or self.obstacles else 0


def known_tools() -> tuple[ManifestTool, ...]:
    """Return every tool that there is a driver of, installed or not."""
    from synapse_ops.systems.manifest_tools import TOOLS

    return TOOLS


def chosen_tools(tools: Sequence[ManifestTool], names: Sequence[str]) -> tuple[ManifestTool, ...]:
    """Return the tools of these names, all when none is named. Raises ConfigError naming the choices."""
    known = {tool.name: tool for tool in tools}
    strange = [name for name in names if name not in known]
    if strange:
        raise ConfigError(f"there is no tool {', '.join(strange)}", detail=f"there are: {', '.join(sorted(known))}")
    return tuple(known[name] for name in names) if names else tuple(tools)


def tools_by_path(bundle: Bundle, tools: Sequence[ManifestTool]) -> dict[str, tuple[str, ...]]:
    """Return the names of the tools that apply, for each document."""
    return {
        str(document.path): tuple(tool.name for tool in tools if tool.applies(document.path))
        for document in bundle.documents
    }


def recorded_proofs(
    bundle: Bundle, tools: Sequence[ManifestTool], store: ObjectStore | None, state_dir: Path
) -> tuple[ToolProof, ...]:
    """Return the state of each proof of exactly these bytes, from what is recorded; runs nothing."""
    documents = [(str(document.path), document.digest) for document in bundle.documents]
    found = read_attestations((digest for _, digest in documents), store, state_dir)
    return judge_proofs(documents, tools_by_path(bundle, tools), found, _judged_with(bundle, tools))


def _judged_with(bundle: Bundle, tools: Sequence[ManifestTool]) -> dict[str, str]:
    """Return the digest of what each tool opens whichever document it judges."""
    return {
        tool.name: digest_of(
            (str(document.path), document.digest)
            for document in bundle.documents
            if any(document.path.match(glob) for glob in tool.opens)
        )
        for tool in tools
    }


def prove_release(
    bundle: Bundle,
    tools: Sequence[ManifestTool],
    store: ObjectStore | None,
    state_dir: Path,
    progress: ReportProgress = ignore_progress,
    *,
    now: datetime,
    required: Sequence[str] = (),
    timeout_s: float = TOOL_TIMEOUT_S,
) -> ProofsReport:
    """Run the tools on the bundle, record what they found, and return it. Safe to repeat."""
    state_dir.mkdir(parents=True, exist_ok=True)
    outcomes: dict[tuple[str, str], ToolOutcome] = {}
    with tempfile.TemporaryDirectory(prefix="prove-", dir=state_dir) as scratch:
        directory = Path(scratch) / "release"
        write_directory(bundle, directory)
        for number, tool in enumerate(tools):
            progress(Progress(f"judging with {tool.name}", number, len(tools), "tools"))
            outcomes |= _outcomes_of(tool, bundle, directory, timeout_s)
    digests = {str(document.path): document.digest for document in bundle.documents}
    keep_attestations(_attestations(outcomes, digests, _judged_with(bundle, tools), now), store, state_dir)
    proofs = recorded_proofs(bundle, _with_all(tools), store, state_dir)
    return ProofsReport(bundle, outcomes, proofs, obstacles(proofs, required))


def _with_all(tools: Sequence[ManifestTool]) -> tuple[ManifestTool, ...]:
    """Return all known tools, the given ones in place of their namesakes: a run of one tool still shows the rest."""
    given = {tool.name for tool in tools}
    return (*tools, *(tool for tool in known_tools() if tool.name not in given))


def _outcomes_of(
    tool: ManifestTool, bundle: Bundle, directory: Path, timeout_s: float
) -> dict[tuple[str, str], ToolOutcome]:
    """Return one outcome for every document that the tool applies to, whatever the tool does."""
    paths = tuple(document.path for document in bundle.documents if tool.applies(document.path))
    if not paths:
        return {}
    version, began_s = tool.version(), time.monotonic()
    found: Mapping[PurePosixPath, ToolOutcome] = {}
    missing = ToolOutcome(tool.name, version or "", "timed-out", ("it said nothing of this document",), 0.0)
    if version is None:
        missing = replace(missing, verdict="absent", findings=(f"not installed: {tool.install}",))
    else:
        try:
            found = tool.check(directory, paths, timeout_s)
        except (DeadlineExceeded, ToolFailed) as error:
            missing = replace(missing, findings=(error.message,), duration_s=time.monotonic() - began_s)
    return {(str(path), tool.name): found.get(path, missing) for path in paths}


def _attestations(
    outcomes: Mapping[tuple[str, str], ToolOutcome],
    digests: Mapping[str, str],
    judged_with: Mapping[str, str],
    now: datetime,
) -> list[Attestation]:
    """Return what is to be recorded; of two documents with the same bytes the one that was refused."""
    found: dict[tuple[str, str], Attestation] = {}
    for (path, tool), outcome in outcomes.items():
        attestation = attestation_of(path, digests[path], judged_with[tool], outcome, now)
        former = found.get((digests[path], tool))
        if attestation is not None and (former is None or former.verdict == "passed"):
            found[digests[path], tool] = attestation
    return list(found.values())
