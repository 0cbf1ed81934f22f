"""The one way to stdout and stderr of a command: nothing that others have named or answered is obeyed by a terminal."""

from __future__ import annotations

import json

import click

from synapse_ops.domain.printable_text import printable


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text of one line or several."""
    click.echo(printable(text, keep="\n\t"), err=err, nl=nl)


def print_json(document: object, *, err: bool = False, indent: int | None = 2) -> None:
    """Print one JSON document, which reads back as the same."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    click.echo(printable(text, keep="\n", escape=lambda sign: json.dumps(sign)[1:-1]), err=err)
