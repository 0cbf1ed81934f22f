"""What outside tools say is recorded of exactly the bytes they saw, and a release reads it by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import jsonschema
import pytest

from synapse_ops.domain.attestation import ToolOutcome
from synapse_ops.errors import ConfigError, DeadlineExceeded, DocumentUnreadable, Refused
from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.operations.attestations import FOLDER, newest_recording, read_attestations
from synapse_ops.operations.prove_release import (
    ProofsReport,
    chosen_tools,
    known_tools,
    prove_release,
    recorded_proofs,
    tools_by_path,
)
from synapse_ops.operations.release import refuse_unproven, release_record, store_release
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.object_store import ObjectStore, StoreAccess
from tests.manifests.test_render import call

NOW = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
DOCKERFILE = "docker/Dockerfile"
SCHEMAS = Path(__file__).parents[2] / "docs" / "json"
LOADED, _ = check_text("name: synapse\n", Path("spec.yaml"))
assert LOADED is not None
BUNDLE = render_bundle(LOADED.spec)
CHANGED = render_bundle(check_text("name: synapse\nserver: {port: 9000}\n", Path("spec.yaml"))[0].spec)  # type: ignore[union-attr]


@dataclass(frozen=True)
class WordFinder:
    """A tool of these tests: refuses each document below a folder that holds a word. It reads the real files."""

    name: str = "word-finder"
    install: str = "nothing to install"
    opens: tuple[str, ...] = ()
    folder: str = "docker"
    word: str = "never-in-a-document"
    is_installed: bool = True
    judges: bool = True
    hangs: bool = False

    def applies(self, path: PurePosixPath, /) -> bool:
        return path.parts[0] == self.folder

    def version(self) -> str | None:
        return "1.0" if self.is_installed else None

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        if self.hangs:
            raise DeadlineExceeded(f"{self.name} did not end within {timeout_s} s")
        found = {}
        for path in documents if self.judges else ():
            bad = self.word in (directory / path).read_text()
            found[path] = ToolOutcome(
                self.name, "1.0", "failed" if bad else "passed", (f"holds {self.word}",) if bad else (), 0.01
            )
        return found


FINDER = WordFinder()


def proven(
    state_dir: Path,
    *tools: WordFinder,
    bundle: Bundle = BUNDLE,
    store: ObjectStore | None = None,
    now: datetime = NOW,
    required: tuple[str, ...] = (),
) -> ProofsReport:
    return prove_release(bundle, tools, store, state_dir, now=now, required=required)


def test_every_document_is_judged_by_every_tool_that_applies(tmp_path: Path) -> None:
    """The report has one outcome for each pair, and no other."""
    report = proven(tmp_path, FINDER)

    expected = {(path, FINDER.name) for path in BUNDLE.by_path if path.startswith("docker/")}
    assert set(report.outcomes) == expected
    assert {outcome.verdict for outcome in report.outcomes.values()} == {"passed"}
    assert report.exit_code == 0
    assert not list(tmp_path.glob("prove-*"))


def test_each_recording_is_seen_by_who_waits_for_one(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """The same word at another time too, from whichever host; a run that attests nothing is none."""
    store, here, there = ObjectStore(bucket_url, object_store_access), tmp_path / "here", tmp_path / "there"
    seen = [newest_recording(store, here)]
    assert seen == [""]
    proven(here, replace(FINDER, is_installed=False), store=store)
    assert newest_recording(store, here) == ""

    for state_dir, kept_in, minute in ((here, None, 0), (here, None, 1), (there, store, 2), (there, store, 3)):
        proven(state_dir, FINDER, store=kept_in, now=NOW + timedelta(minutes=minute))
        seen.append(newest_recording(store, here))

    assert len(set(seen)) == 5
    assert newest_recording(store, here) == seen[-1]


def test_refusal_is_recorded_and_told_by_the_exit_code(tmp_path: Path) -> None:
    """13: a present tool refused a document; the recorded proof says the same afterwards, without the tool."""
    report = proven(tmp_path, replace(FINDER, word="FROM"))

    assert report.exit_code == 13
    of_dockerfile = next(row for row in recorded_proofs(BUNDLE, (FINDER,), None, tmp_path) if row.path == DOCKERFILE)
    assert of_dockerfile.verdict == "refused"
    assert "holds FROM" in of_dockerfile.reason


@pytest.mark.parametrize(
    ("tool", "verdict"),
    [
        (replace(FINDER, is_installed=False), "absent"),
        (replace(FINDER, hangs=True), "timed-out"),
        (replace(FINDER, judges=False), "timed-out"),
    ],
    ids=["absent", "hangs", "silent"],
)
def test_tool_that_judged_nothing_leaves_no_attestation(tmp_path: Path, tool: WordFinder, verdict: str) -> None:
    """14: a tool hangs, says nothing, or none is there at all. Beside others an absent one stops nothing."""
    report = proven(tmp_path / "alone", tool)

    assert {outcome.verdict for outcome in report.outcomes.values()} == {verdict}
    assert report.exit_code == 14
    assert not (tmp_path / "alone" / FOLDER).exists()
    beside = proven(tmp_path / "beside", replace(tool, name="another"), FINDER)
    assert beside.exit_code == (0 if verdict == "absent" else 14)


def test_absent_tool_does_not_undo_a_refusal(tmp_path: Path) -> None:
    """Uninstalling the tool that complained is no way to a release."""
    proven(tmp_path, replace(FINDER, word="FROM"))

    report = proven(tmp_path, replace(FINDER, is_installed=False), required=("tools",))

    assert report.exit_code == 14
    assert any(f"{DOCKERFILE} is refused" in obstacle for obstacle in report.obstacles)


def test_changed_document_loses_its_proof_and_the_others_keep_theirs(tmp_path: Path) -> None:
    """Another port changes the Dockerfile; what it does not change stays proven, by the same digest."""
    proven(tmp_path, FINDER)

    after = {row.path: row.verdict for row in recorded_proofs(CHANGED, (FINDER,), None, tmp_path)}

    assert after[DOCKERFILE] == "unproven"
    unchanged = [path for path in after if BUNDLE.by_path[path].digest == CHANGED.by_path[path].digest]
    assert unchanged
    assert {after[path] for path in unchanged} == {"proven"}


def test_newest_word_of_store_and_host_counts(
    tmp_path: Path, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """CI records in the store, a host in its state directory; whichever ran last on the same bytes is believed."""
    store = ObjectStore(f"{bucket_url}releases/", object_store_access)
    proven(tmp_path / "ci", replace(FINDER, word="FROM"), store=store)
    proven(tmp_path / "host", FINDER, now=NOW + timedelta(hours=1))
    proven(tmp_path / "earlier", FINDER, now=NOW - timedelta(hours=1))

    def verdict(host: str) -> str:
        return next(
            row.verdict for row in recorded_proofs(BUNDLE, (FINDER,), store, tmp_path / host) if row.path == DOCKERFILE
        )

    assert (verdict("host"), verdict("earlier"), verdict("nothing yet")) == ("proven", "refused", "refused")


def test_torn_attestation_is_told_and_never_taken_for_none(tmp_path: Path) -> None:
    """Half a document is damage."""
    proven(tmp_path, FINDER)
    digest = BUNDLE.by_path[DOCKERFILE].digest
    path = tmp_path / FOLDER / digest / f"{FINDER.name}.json"
    path.write_bytes(path.read_bytes()[:50])

    with pytest.raises(DocumentUnreadable):
        read_attestations([digest], None, tmp_path)


def test_attestation_copied_from_other_bytes_proves_nothing(tmp_path: Path) -> None:
    """The document's own digest inside the attestation is compared, not only its name."""
    proven(tmp_path, FINDER)
    kept = tmp_path / FOLDER / BUNDLE.by_path[DOCKERFILE].digest
    kept.rename(kept.with_name(CHANGED.by_path[DOCKERFILE].digest))

    proofs = recorded_proofs(CHANGED, (FINDER,), None, tmp_path)

    assert next(row.verdict for row in proofs if row.path == DOCKERFILE) == "unproven"
    with pytest.raises(Refused, match="cannot release"):
        refuse_unproven(CHANGED, proofs, ["tools"])


def test_release_refuses_by_itself_until_its_own_bytes_are_proven(tmp_path: Path) -> None:
    """Absent, failed and passed, in this order: only the last lets the release through."""
    with pytest.raises(Refused, match="do not hold"):
        refuse_unproven(BUNDLE, recorded_proofs(BUNDLE, (FINDER,), None, tmp_path), ["tools"])
    refused = proven(tmp_path, replace(FINDER, word="FROM"))
    with pytest.raises(Refused) as found:
        refuse_unproven(BUNDLE, refused.proofs, ["tools"])
    assert "holds FROM" in found.value.detail

    proven(tmp_path, FINDER, now=NOW + timedelta(minutes=1))

    refuse_unproven(BUNDLE, recorded_proofs(BUNDLE, (FINDER,), None, tmp_path), ["tools"])


def test_release_record_names_digest_blocks_and_proofs(
    tmp_path: Path, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """A proof that comes later is added to release.json; nothing else in it changes, and it is not written in vain."""
    assert LOADED is not None
    store = ObjectStore(f"{bucket_url}releases/", object_store_access)
    assert store_release(BUNDLE, LOADED, store)
    before = json.loads(store.read_bytes(f"{BUNDLE.digest}/release.json"))
    proofs = proven(tmp_path, FINDER).proofs

    assert store_release(BUNDLE, LOADED, store, proofs)
    assert not store_release(BUNDLE, LOADED, store, proofs)

    after = json.loads(store.read_bytes(f"{BUNDLE.digest}/release.json"))
    of_dockerfile = next(row for row in after["documents"] if row["path"] == DOCKERFILE)
    assert "docker" in of_dockerfile["reads"]
    assert [(row["tool"], row["verdict"]) for row in of_dockerfile["proofs"]] == [(FINDER.name, "proven")]
    for document in after["documents"]:
        document["proofs"] = []
    assert after == before == release_record(BUNDLE, LOADED)


def test_misspelt_tool_is_refused_with_the_choices() -> None:
    """A run of no tool at all would prove nothing and end well."""
    with pytest.raises(ConfigError) as found:
        chosen_tools((FINDER,), ["hadolintt"])

    assert "word-finder" in found.value.detail


def test_names_of_tools_are_distinct() -> None:
    """Two tools of one name would overwrite one another's word."""
    names = [tool.name for tool in known_tools()]

    assert len(names) == len(set(names))
    assert set(tools_by_path(BUNDLE, known_tools())) == set(BUNDLE.by_path)


def test_json_of_both_commands_follows_its_schema(tmp_path: Path) -> None:
    """What docs/json promises, kept; a run without any installed tool is valid, and says what is not proven."""
    (tmp_path / "infrastructure.yaml").write_text("name: acme\nmanifests: {require_proofs: [packets]}\n")

    rendered = call("--json", cwd=tmp_path)
    command = [sys.executable, "-m", "synapse_ops", "prove-release", "--local", "--json"]
    absent = {**os.environ, "PATH": str(tmp_path)}
    judged = subprocess.run(command, cwd=tmp_path, env=absent, capture_output=True, text=True, timeout=120, check=False)

    assert (rendered.returncode, judged.returncode) == (0, 14), judged.stderr
    for name, body in (("render", rendered.stdout), ("prove-release", judged.stdout)):
        jsonschema.validate(json.loads(body), json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    assert any(line.startswith("packets:") for line in json.loads(judged.stdout)["obstacles"])
