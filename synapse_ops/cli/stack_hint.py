"""What starts the embedded stack, said by every command that finds one of its servers gone."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from synapse_ops.errors import SynapseOpsError, Unreachable


def add_stack_hint(error: SynapseOpsError) -> None:
    """Put the command that starts the embedded stack into the hint, when the running command works on a stopped one.

    A spec of the operator's own, or a repository by its URL, is not the embedded stack's.
    """
    context = click.get_current_context(silent=True)
    if not isinstance(error, Unreachable) or context is None:
        return
    state_dir, spec = context.params.get("state_dir"), context.params.get("spec_path")
    if state_dir is None or (context.params.get("repository_url") and spec is None):
        return
    from synapse_ops.local.embedded_stack import is_lost, stack_status
    from synapse_ops.local.layout import find_layout

    layout = find_layout(state_dir)
    if not layout.spec_file.is_file() or (spec is not None and Path(spec).resolve() != layout.spec_file.resolve()):
        return
    servers = stack_status(state_dir).servers.values()
    if any(server.state != "running" for server in servers):
        named = "" if state_dir == Path(".synapse") else f" --state-dir {shlex.quote(str(state_dir))}"
        error.hint = f"The embedded stack does not run: `synapse-ops local up{named}` or `ui` starts it."
        if is_lost(layout):
            error.hint = f"The data of PostgreSQL is gone: `synapse-ops recover{named}` looks what can be brought back."
