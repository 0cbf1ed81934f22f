"""Whoever meets a server of the stopped embedded stack is told what starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from synapse_ops.cli.main import cli
from synapse_ops.errors import Unreachable
from synapse_ops.local.layout import find_layout
from synapse_ops.local.state import ServerState, StackState, write_state
from synapse_ops.systems.host.processes import free_ports


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    """The spec of a stack that was stopped: nothing listens on its ports."""
    [port] = free_ports(1)
    for name, text in {"admin": f"postgresql://x:y@127.0.0.1:{port}/app", "keys": "[default]\n"}.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o600)
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"name: stopped\n"
        f"database: {{port: {port}, name: app, admin: 'file:{tmp_path}/admin'}}\n"
        f"backup: {{database: {{destination: 's3://backups/database/'}}}}\n"
        f"object_store: {{endpoint: 'http://127.0.0.1:{port}'}}\n"
    )
    layout = find_layout(tmp_path)
    layout.state_file.parent.mkdir(exist_ok=True)
    write_state(layout.state_file, StackState(servers={"s3": ServerState("s3", "stopped")}))
    return spec


def call(*arguments: str) -> str:
    """Return the hint that the command ends with."""
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "SYNAPSE_SPEC": None, "AWS_MAX_ATTEMPTS": "1"}
    result = CliRunner().invoke(cli, [*arguments, "--json"], env=keys)
    if isinstance(result.exception, Unreachable):
        return result.exception.hint
    assert result.exit_code == Unreachable.exit_code, result.output
    return str(json.loads(result.stdout)["failures"][0]["hint"])


@pytest.mark.parametrize("command", [("verify",), ("restore", "20261123T201726Z-3f9a1c", "--to", "copy")])
def test_the_command_that_starts_the_stack_is_named(spec_path: Path, command: tuple[str, ...]) -> None:
    """With the state directory where it is not the usual one."""
    hint = call(*command, "--state-dir", str(spec_path.parent))

    assert hint == (
        f"The embedded stack does not run: `synapse-ops local up --state-dir {spec_path.parent}` or `ui` starts it."
    )


def test_a_spec_of_the_operators_own_is_not_the_embedded_stacks(spec_path: Path, tmp_path: Path) -> None:
    """Its servers are started elsewhere."""
    own = tmp_path / "own.yaml"
    own.write_text(spec_path.read_text())

    hint = call("verify", "--state-dir", str(spec_path.parent), "--spec", str(own))

    assert hint == "Is the store up, and is object_store.endpoint right?"
