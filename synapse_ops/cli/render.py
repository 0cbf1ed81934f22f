"""`synapse-ops render`: writes every document that the spec means, or shows how a directory differs from them."""

from __future__ import annotations

from pathlib import Path

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError, counted


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory to write the documents to.")
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit 16 when --out differs.")
@click.option("--store", "to_store", is_flag=True, help="Also store it as a release.")
@click.option("--json", "as_json", is_flag=True, help="Print the release as JSON.")
@stack_options
def command(place: Place, out: Path | None, only_check: bool, to_store: bool, as_json: bool) -> None:
    """Render the spec: Dockerfile, compose, Kubernetes, servers, monitoring, logging, firewall and TLS.

    Without --out nothing is written and the documents are listed. A directory is replaced as a whole, and only when it
    is empty or an unchanged former rendering. No document holds a secret.

    \b
    Examples:
      synapse-ops render
      synapse-ops render --out rendered
      synapse-ops render --out rendered --check
      synapse-ops render --out rendered --store --json
    """
    from synapse_ops.operations.release.render import render, require_directory, write_directory
    from synapse_ops.operations.release.store import make_release, release_record

    if only_check and (out is None or to_store):
        raise ConfigError("--check compares a directory and writes nothing", hint="Give --out DIR, without --store.")
    stack = place.stack()
    rendered = render(stack.spec)
    bundle = rendered.bundle
    if only_check and out is not None:
        require_directory(bundle, out)
    elif out is not None:
        write_directory(bundle, out)
    if to_store:
        make_release(stack, bundle)
    if as_json:
        record = release_record(bundle, stack.loaded)
        notes = [{"rule": note.rule, "path": note.path, "message": note.message} for note in rendered.notes]
        print_json(record | {"notes": notes})
        return
    for document in bundle.documents if out is None else ():
        echo(f"{document.digest[:12]}  {len(document.data):>8,}  {document.path}")
    for note in rendered.notes:
        echo(f"note: {note.path}: {note.message}", err=True)
    done = "equal" if only_check else "written" if out is not None else "rendered"
    echo(f"{counted(len(bundle.documents), 'document')} {done}, release {bundle.digest}")
