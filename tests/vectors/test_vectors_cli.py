"""The command line takes, proves, lists and restores collections; its JSON keeps what its schemas promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema

from synapse_ops.operations.stack import Stack
from synapse_ops.systems.qdrant import QdrantServer
from tests.vectors.collections import fill, plain_config, plain_points

SCHEMAS = Path(__file__).parents[2] / "docs" / "json"


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
    try:
        [taken] = checked("vectors-snapshot", call(stack, "vectors", "snapshot", "--collection", collection, "--json"))[
            "backups"
        ]
        [proof] = checked("vectors-verify", call(stack, "vectors", "verify", "--json"))
        assert (proof["verdict"], proof["backup_id"]) == ("proven", taken["backup_id"])
        assert taken["backup_id"] in call(stack, "backup", "list", "--vectors")
        assert "50 points in 1 shards" in call(stack, "backup", "show", taken["backup_id"], "--vectors")

        arguments = ("vectors", "restore", taken["backup_id"], "--to", new)
        assert checked("vectors-restore", call(stack, *arguments, "--plan", "--json"))["target"] == new
        assert new not in server.collections()
        done = checked("vectors-restore", call(stack, *arguments, "--apply", "--json"))
        assert set(done["counts"].values()) == {50}
        assert f"before: {collection}" in call(stack, "vectors", "switch-alias", alias, new)
        assert server.aliases()[alias] == new
    finally:
        server.delete_collection(new)


def test_a_name_that_is_not_there_is_told_with_those_that_are(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), [])

    assert collection in call(stack, "vectors", "snapshot", "--collection", "nowhere", status=2)
    assert "there is no backup" in call(stack, "vectors", "restore", "20260101T000000Z-000000", "--to", "x", status=2)
