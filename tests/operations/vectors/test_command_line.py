"""The command line takes, proves, lists and restores collections; its JSON keeps what its schemas promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import structlog
from click.testing import CliRunner

from synapse_ops.cli.main import cli
from synapse_ops.operations.backup.taking import BackupReport
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors import snapshot as vector_snapshot
from synapse_ops.systems.qdrant.server import QdrantServer
from tests.operations.vectors.collections import fill, plain_config, plain_points

SCHEMAS = Path(__file__).parents[3] / "docs" / "json"


def call(stack: Stack, *arguments: str, status: int = 0) -> str:
    """Run the command on the stack's spec and return what it printed."""
    code = "import sys; from synapse_ops.cli.main import main; main(sys.argv[1:])"
    argv = [
        sys.executable,
        "-c",
        code,
        *arguments,
        "--spec",
        str(stack.loaded.path),
        "--state-dir",
        str(stack.state_dir),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout or done.stderr


def checked(name: str, text: str) -> Any:
    body = json.loads(text)
    jsonschema.validate(body, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    return body


def test_a_collection_is_taken_proven_restored_and_made_live_by_commands_alone(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), plain_points(50))
    alias, new = f"{collection}-live", f"{collection}_new"
    server.switch_alias(alias, collection)
    subject = f"vectors/{collection}"
    try:
        [taken] = checked("backup-now", call(stack, "backup", "now", subject, "--json"))["backups"]
        assert (taken["kind"], taken["subject"], taken["points"]) == ("snapshot", collection, 50)
        [proof] = checked("verify", call(stack, "verify", subject, "--json"))["proofs"]
        assert (proof["verdict"], proof["backup_id"]) == ("proven", taken["backup_id"])
        assert taken["backup_id"] in call(stack, "backup", "list", "vectors")
        shown = call(stack, "backup", "show", taken["backup_id"])
        assert subject in shown
        assert "points │ 50" in " ".join(shown.split())

        arguments = ("restore", taken["backup_id"], "--to", new)
        assert checked("restore", call(stack, *arguments, "--plan", "--json"))["target"].endswith(f"/{new}")
        assert new not in server.collections()
        done = checked("restore", call(stack, *arguments, "--apply", "--json"))
        assert set(done["counts"].values()) == {50}
        assert f"before: {collection}" in call(stack, "vectors", "switch-alias", alias, new)
        assert server.aliases()[alias] == new
    finally:
        server.delete_collection(new)


def test_a_name_that_does_not_exist_is_refused_with_those_that_do(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), [])

    assert f"vectors/{collection}" in call(stack, "backup", "now", "vectors/nowhere", status=2)
    assert "there is no backup" in call(stack, "restore", "20260101T000000Z-000000", "--to", "x", status=2)
    assert "backup.redis is not set" in call(stack, "backup", "now", "redis", status=2)


def test_a_failure_of_one_subject_stops_no_other_and_the_worst_gives_the_exit_code(
    stack: Stack, server: QdrantServer, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database does not answer (12), one collection meets a fault of our own (1); the other is taken."""
    other = f"{collection}_other"
    fill(server, collection, plain_config(), plain_points(5))
    fill(server, other, plain_config(), plain_points(5))
    take = vector_snapshot.snapshot_collection

    def snapshot(stack: Stack, name: str, **more: Any) -> BackupReport:
        if name == collection:
            raise RuntimeError("a bug")
        return take(stack, name, **more)

    monkeypatch.setattr(vector_snapshot, "snapshot_collection", snapshot)
    place = ("--spec", str(stack.loaded.path), "--state-dir", str(stack.state_dir))
    try:
        subjects = ("database", f"vectors/{collection}", f"vectors/{other}")
        with structlog.testing.capture_logs():
            result = CliRunner().invoke(cli, ["backup", "now", *subjects, "--json", *place])
    finally:
        server.delete_collection(other)

    body = checked("backup-now", result.stdout)
    codes = {row["subject"]: row["exit_code"] for row in body["failures"]}
    assert codes == {"database/nowhere": 12, f"vectors/{collection}": 1}
    assert [row["subject"] for row in body["backups"]] == [other]
    assert result.exit_code == 1
    [log] = re.findall(r"\S+\.log", body["failures"][1]["detail"])
    assert "RuntimeError: a bug" in Path(log).read_text()
    Path(log).unlink()
