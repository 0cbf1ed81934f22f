"""`synapse-ops spec`: check a spec, show what it means with all defaults, and print its JSON Schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError

_file = click.argument("file", type=click.Path(path_type=Path), required=False)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@click.group()
def command() -> None:
    """Check, show and document the spec.

    \b
    Examples:
      synapse-ops spec check infrastructure.yaml
      synapse-ops spec show infrastructure.yaml
      synapse-ops spec schema > infrastructure.schema.json
    """


@command.command()
@_file
@_json
@stack_options
def check(file: Path | None, as_json: bool, place: Place) -> None:
    """Check FILE, or the spec that the options name, and list every fault at once.

    Exits with 0 when it is valid and with 2 when it is not.
    """
    from synapse_ops.spec.faults import spec_error
    from synapse_ops.spec.loading import check_spec

    path = file or place.found_spec()
    try:
        loaded, faults = check_spec(path)
    except ConfigError as unreadable:
        if as_json:
            _print({"path": str(path), "valid": False, "faults": [_unreadable(path, unreadable)]})
            raise click.exceptions.Exit(unreadable.exit_code) from None
        raise
    if loaded is None:
        if as_json:
            _print({"path": str(path), "valid": False, "faults": [fault.as_json(path) for fault in faults]})
            raise click.exceptions.Exit(ConfigError.exit_code)
        raise spec_error(path, faults)
    if as_json:
        facts = {"digest": loaded.digest, "notes": loaded.notes, "ignored": loaded.ignored}
        _print({"path": str(path), "valid": True, "faults": [], **facts})
        return
    echo(f"{path} is valid, sha256 {loaded.digest}")
    for note in loaded.notes:
        echo(f"note: {note}")
    for field, reason in loaded.ignored.items():
        if field in loaded.origins:
            echo(f"note: {field} ({loaded.origins[field]}) is ignored because {reason}")


@command.command()
@_file
@_json
@stack_options
def show(file: Path | None, as_json: bool, place: Place) -> None:
    """Show FILE, or the spec that the options name, with every default, each value's origin, and what has no effect.

    The output is a valid spec with the same meaning. Secrets are never read: only their references are shown.
    """
    from synapse_ops.spec import load_spec
    from synapse_ops.spec.showing import format_spec, values_of

    loaded = load_spec(file or place.found_spec())
    if not as_json:
        echo(format_spec(loaded), nl=False)
        return
    digests = {"digest": loaded.digest, "block_digests": loaded.block_digests}
    _print({"path": str(loaded.path), **digests, "notes": loaded.notes, "values": values_of(loaded)})


@command.command()
def schema() -> None:
    """Print the JSON Schema of a spec, with a description of every block and field.

    \b
    Editors that know yaml-language-server use it after a first line such as
      # yaml-language-server: $schema=infrastructure.schema.json
    """
    from synapse_ops.spec.allowed import json_schema

    _print(json_schema())


def _unreadable(path: Path, error: ConfigError) -> dict[str, Any]:
    nowhere = {"line": None, "column": None, "field": None}
    return {"file": str(path), **nowhere, "found": error.message, "allowed": error.hint, "suggestion": None}


def _print(document: object) -> None:
    print_json(document)
