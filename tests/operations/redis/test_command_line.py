"""The command line takes, proves and restores Redis as it does every kind; its JSON keeps what its schemas promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import structlog
from click.testing import CliRunner

from synapse_ops.cli.main import cli
from synapse_ops.operations.stack import Stack
from tests.redis_servers import RealRedis

SCHEMAS = Path(__file__).parents[3] / "docs" / "json"


def call(stack: Stack, schema: str, *arguments: str) -> Any:
    place = ("--spec", str(stack.loaded.path), "--state-dir", str(stack.state_dir))
    with structlog.testing.capture_logs():
        result = CliRunner().invoke(cli, [*arguments, "--json", *place])
    assert result.exit_code == 0, result.output + repr(result.exception)
    body = json.loads(result.stdout)
    jsonschema.validate(body, json.loads((SCHEMAS / f"{schema}.schema.json").read_text()))
    return body


def test_redis_is_taken_proven_and_restored_by_commands_alone(stack: Stack, server: RealRedis, tmp_path: Path) -> None:
    """`redis` is a subject as every other; its backup is restored to a data directory, which the plan does not make."""
    server.client().set("a", "b")

    [taken] = call(stack, "backup-now", "backup", "now", "redis")["backups"]
    [proof] = call(stack, "verify", "verify", "redis")["proofs"]
    plan = call(stack, "restore", "restore", taken["backup_id"], "--to", str(tmp_path / "new"))

    assert (taken["kind"], taken["keys"], taken["subject"]) == ("rdb", 1, f"127.0.0.1:{server.port}")
    assert (proof["verdict"], proof["kind"], proof["backup_id"]) == ("proven", "rdb", taken["backup_id"])
    assert (plan["target"], plan["item_count"]) == (str(tmp_path / "new"), 1)
    assert not (tmp_path / "new").exists()
    place = ("--spec", str(stack.loaded.path), "--state-dir", str(stack.state_dir))
    refused = CliRunner().invoke(cli, ["restore", taken["backup_id"], "--to", "x", "--server", "env:X", *place])
    assert "--server names the server of a new database" in str(refused.exception)
