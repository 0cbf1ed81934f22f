"""Writes docs/configuration.md from the spec's models, docs/cli.md from the commands and the error tree, and the
diagram in docs/failover.md from its table of transitions.

    python docs/generate.py            write both
    python docs/generate.py --check    exit 1, naming the files, when one differs from what would be written

What is told here is told nowhere else: a default, a form or an exit code is changed in the code, never in these pages.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from synapse_ops import errors
from synapse_ops.cli.main import COMMANDS, cli
from synapse_ops.domain.failover.transitions import TRANSITIONS
from synapse_ops.errors import SynapseOpsError
from synapse_ops.spec import rules
from synapse_ops.spec.allowed import allowed_in_words, json_schema, resolved
from synapse_ops.spec.cron import CRON_FORM
from synapse_ops.spec.secrets import REFERENCE_FORM
from synapse_ops.spec.units import CORES_FORM, DURATION_FORM, RETENTION_FORM, SIZE_FORM

HERE = Path(__file__).resolve().parent
GENERATED = "<!-- Written by docs/generate.py; change the code that it names, then run `make docs`. -->\n"

DIAGRAM_BEGIN = "```mermaid\nstateDiagram-v2\n"  # written from domain/failover/transitions.py

FORMS = {
    DURATION_FORM: "duration",
    RETENTION_FORM: "retention",
    SIZE_FORM: "size",
    CORES_FORM: "cores",
    CRON_FORM: "cron",
    REFERENCE_FORM: "reference",
}

CONFIGURATION_HEAD = """# Configuration

One file says what the stack is: the spec, `infrastructure.yaml`. Every block and every field is optional, and an
unknown key is a fault. `examples/synapse/infrastructure.yaml` is complete and commented.

- `synapse-ops spec check FILE` lists all faults at once: file, line, field, what was found and what is allowed. Exit 2.
- `synapse-ops spec show FILE` prints every value with its default filled in, where it came from, and why it has no
  effect where it has none. Its output is a valid spec with the same digest.
- `synapse-ops spec schema > infrastructure.schema.json` writes a JSON Schema; editors with yaml-language-server use it
  after a first line `# yaml-language-server: $schema=infrastructure.schema.json`.

## Forms

| form | written as |
|---|---|
"""

CONFIGURATION_RULES = """
A list replaces its default as a whole, and so does `alerting.actions`; a block keeps the defaults of the fields that it
leaves out. A key without a value is a fault: leave it out, or write `null` where null is allowed. A key may stand only
once. YAML 1.2: `off` is text. A file may hold several documents (`---`), each block in one of them.

**Secrets** stand in a spec by reference only. `env:NAME` reads an environment variable, `file:/ABSOLUTE/PATH` a regular
file of at most 64 KiB, `kubernetes:NAMESPACE/NAME/KEY` a Kubernetes secret from inside a pod. Whatever looks like a
secret is refused wherever it stands, also inside a URL, and no message repeats it.

**Precedence.** `failover.primary` and `failover.standby` name the nodes. `database.host` is what clients use; where it
is this machine or one of `database.nodes`, they try every node. `autoscaling` takes precedence over
`kubernetes.replicas`. A relative `health.url` is below `health_base_url`, and that is the `server` block's own address
unless it is given. A flat `backup` block is the vector store's.

## Combinations that are refused

Besides what each field allows, these are faults, because the values cannot work together:
"""

CLI_HEAD = """# Command line

Data goes to stdout; logs, progress and errors go to stderr. `--json` on a command that reads prints one JSON document
on stdout; its keys stay, new ones may appear. With `--json` an error is one JSON object on stderr: `error` with `code`,
`message`, `detail` and `hint`, and `exit_code`. Every command takes `--help`.

A subject is `database/NAME`, `vectors/COLLECTION` or `redis`; `database` or `vectors` alone means all of them, and no
subject means everything that the spec has backed up. A backup id needs no subject: it is looked up in all repositories.
A command that works on several subjects goes on after the failure of one. It prints each failure on stderr, or with
`--json` names each under `failures` of its document, and exits with the code of the worst.

With `--repository` no spec is read: the URL, the keys (`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or another
source of the AWS tools) and, for a store other than AWS, `--endpoint` or `AWS_ENDPOINT_URL` are all there is. So the
store of the embedded stack, whose address `local status` shows, is read with

    export AWS_SHARED_CREDENTIALS_FILE=.synapse/secrets/object-store.credentials
    synapse-ops backup list --repository s3://backups/database/ --endpoint http://127.0.0.1:PORT

## Exit codes
"""


def configuration() -> str:
    """Return docs/configuration.md."""
    text = CONFIGURATION_HEAD
    for form, name in FORMS.items():
        text += f"| {name} | {_cell(form)} |\n"
    text += CONFIGURATION_RULES + "\n"
    for rule in rules.RULES:
        text += f"- {_cell(inspect.getdoc(rule) or '')}\n"
    schema = resolved(json_schema())
    single = {key: field for key, field in schema["properties"].items() if not _is_block(resolved(field))}
    text += "\n## Single values\n\n" + _table(single)
    for key, field in schema["properties"].items():
        if key not in single:
            text += "\n" + "\n".join(_block(key, resolved(field), "##")) + "\n"
    return text


def _is_block(schema: dict[str, Any]) -> bool:
    return "properties" in schema or "properties" in resolved(schema.get("items", {}))


def _block(path: str, schema: dict[str, Any], level: str) -> Iterator[str]:
    """Yield the section of one block: what it is, its own fields, then the blocks within it."""
    item = resolved(schema["items"]) if schema.get("type") == "array" else schema
    name = f"{path}[]" if item is not schema else path
    yield f"{level} `{name}`\n"
    yield item.get("description", "") + (" A list." if item is not schema else "") + "\n"
    if item is not schema and "default" in schema:
        yield f"Default: `{json.dumps(schema['default'], ensure_ascii=False)}`\n"
    below = {key: resolved(field) for key, field in item["properties"].items()}
    own = {key: field for key, field in item["properties"].items() if not _is_block(below[key])}
    if own:
        yield _table(own).rstrip("\n")
    for key, field in below.items():
        if _is_block(field):
            yield ""
            yield from _block(f"{name}.{key}", field, "###")


def _table(fields: dict[str, Any]) -> str:
    """Return fields as a table; empty for none."""
    if not fields:
        return ""
    rows = ["| field | default | allowed | |", "|---|---|---|---|"]
    for key, field in fields.items():
        schema = resolved(field)
        default = f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else "required"
        allowed = allowed_in_words(schema)
        for form, name in FORMS.items():
            allowed = allowed.replace(form, f"[{name}](#forms)")
        rows.append(f"| `{key}` | {_cell(default)} | {_cell(allowed)} | {_cell(schema.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def command_line() -> str:
    """Return docs/cli.md. A command whose module does not exist yet is left out."""
    text = CLI_HEAD + "\n| code | error | when |\n|---|---|---|\n"
    for code, name, when in sorted(_exit_codes()):
        text += f"| {code} | {name} | {_cell(when)} |\n"
    text += "| 130 | | Interrupted. |\n\nAny other code is a failure, too.\n"
    worst = ", ".join(map(str, errors.WORST_FIRST))
    text += f"\nWhere several subjects failed, the exit code is the first of these that occurred: {worst}.\n"
    text += "\n" + _indented(cli.get_help(_context(cli, "synapse-ops", None)))
    for name, (module, _) in COMMANDS.items():
        if importlib.util.find_spec(f"synapse_ops.cli.{module.partition(':')[0]}") is None:
            continue
        context = _context(cli, "synapse-ops", None)
        command = cli.get_command(context, name)
        assert command is not None
        text += "\n".join(_command(command, name, context, "##"))
    return text.rstrip("\n") + "\n"


def _exit_codes() -> Iterator[tuple[int, str, str]]:
    yield 0, "", "Done; for a check, it passed."
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, SynapseOpsError):
            yield kind.exit_code, f"`{name}`", (inspect.getdoc(kind) or "").split("\n\n")[0]


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings: dict[str, Any] = {**command.context_settings, "max_content_width": 110, "terminal_width": 110}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _command(command: click.Command, name: str, parent: click.Context, level: str) -> Iterator[str]:
    context = _context(command, name, parent)
    yield f"\n{level} `{context.command_path}`\n"
    yield _indented(command.get_help(context))
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            subcommand = command.get_command(context, below)
            if subcommand is not None and not subcommand.hidden:
                yield from _command(subcommand, below, context, "###")


def _indented(text: str) -> str:
    lines = (f"    {line.rstrip()}" if line.strip() else "" for line in text.splitlines())
    return "\n".join(lines) + "\n"


def failover() -> str:
    """Return docs/failover.md as it stands, with the diagram of the table of transitions."""
    page = HERE / "failover.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(DIAGRAM_BEGIN)
    after = rest.partition("```\n")[2]
    lines = [f"    {before_} --> {after_}: {event}" for (before_, event), after_ in TRANSITIONS.items()]
    return before + DIAGRAM_BEGIN + "\n".join(lines) + "\n```\n" + after


PAGES = {"configuration.md": configuration, "cli.md": command_line, "failover.md": failover}
BY_HAND = {"failover.md"}  # but for the diagram


def main(arguments: list[str]) -> int:
    """Write or check the pages and return the exit code."""
    if arguments not in ([], ["--check"]):
        click.echo("usage: python docs/generate.py [--check]", err=True)
        return 2
    stale = []
    for name, build in PAGES.items():
        page = HERE / name
        text = build()
        if name not in BY_HAND:
            head, _, rest = text.partition("\n")
            text = f"{head}\n\n{GENERATED}{rest}"
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        if arguments:
            stale.append(name)
        else:
            page.write_text(text, encoding="utf-8")
            click.echo(f"wrote docs/{name}")
    for name in stale:
        click.echo(f"docs/{name} differs from the code; run `make docs`", err=True)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
