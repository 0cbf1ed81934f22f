"""`synapse-ops vectors`: the group; each verb has a module of its own, `vectors_<verb>.py`."""

from __future__ import annotations

import click

from synapse_ops.cli import vectors_restore, vectors_snapshot, vectors_verify


@click.group()
def command() -> None:
    """Snapshot, verify and restore collections of Qdrant.

    Listing, pins and expiry are the databases' own commands with --vectors: `synapse-ops backup list --vectors`.

    \b
    Examples:
      synapse-ops vectors snapshot
      synapse-ops vectors verify --all-unproven
      synapse-ops vectors restore 20261123T201726Z-3f9a1c --to documents_yesterday --apply
      synapse-ops vectors switch-alias documents-live documents_yesterday
    """


for verb in (vectors_snapshot.command, vectors_verify.command, vectors_restore.restore, vectors_restore.switch):
    command.add_command(verb)
