"""`synapse-ops vectors switch-alias`: the step that makes a restored collection live."""

from __future__ import annotations

from contextlib import ExitStack

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo


@click.group()
def command() -> None:
    """Switch an alias of Qdrant to a restored collection.

    Backups of collections are taken, listed, proven and restored as those of every kind: `synapse-ops backup --help`.

    \b
    Example:
      synapse-ops vectors switch-alias documents-live documents_yesterday
    """


@command.command("switch-alias", epilog="Example:  synapse-ops vectors switch-alias documents-live documents_yesterday")
@click.argument("alias")
@click.argument("collection")
@stack_options
def switch(alias: str, collection: str, place: Place) -> None:
    """Switch ALIAS to COLLECTION, in one atomic step. Refused unless the collection is whole on every node."""
    from synapse_ops.operations.vectors.alias import switch_alias
    from synapse_ops.systems.qdrant.server import qdrant_nodes

    with ExitStack() as opened:
        servers = tuple(opened.enter_context(server) for server in qdrant_nodes(place.stack().spec.qdrant))
        before = switch_alias(servers, alias, collection)
    echo(f"{alias} stands for {collection} now" + (f"; before: {before}" if before else "; it is new"))
    if before:
        echo(f"back again:  synapse-ops vectors switch-alias {alias} {before}")
