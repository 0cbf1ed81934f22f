"""`synapse-ops`: finds the command, and turns every error into its message and exit code in one place.

Commands are imported only when they are called, so that `synapse-ops spec check` does not pay for boto3.
Data goes to stdout, logs and progress to stderr. Exit codes are the error classes' own (synapse_ops/errors.py);
an unlisted code means failure. A traceback never reaches the operator: it goes to the log file that the notice names.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from synapse_ops import __version__
from synapse_ops.cli.failures import error_of_bug, show_error
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import ConfigError, SynapseOpsError

# command -> (module below synapse_ops.cli, one line of help); the attribute is `command`, or what follows a colon
COMMANDS = {
    "spec": ("spec", "Check, show and document the spec."),
    "local": ("local", "Start, stop and inspect the embedded stack."),
    "backup": ("backup", "Take, list and show backups."),
    "verify": ("verify", "Prove backups by restoring and comparing them."),
    "restore": ("restore", "Restore a backup into a new target."),
    "recover": ("recover", "Bring the whole stack back from the bucket."),
    "expire": ("expire", "Plan and apply retention."),
    "cleanup": ("cleanup", "Plan and apply the cleanup of logs, temporary files, cache and run history."),
    "pin": ("pin", "Exempt a backup from expiry."),
    "unpin": ("pin:unpin", "Lift a pin."),
    "info": ("info", "Show what is protected."),
    "vectors": ("vectors", "Switch an alias of Qdrant to a restored collection."),
    "failover": ("failover", "Show and steer the failover of PostgreSQL."),
    "switchover": ("switchover", "Have the standby take writes, on purpose and without loss."),
    "drill": ("drill", "Rehearse a failover or a recovery on a disposable copy."),
    "chaos": ("chaos", "Break the embedded stack on purpose, to see what happens."),
    "wal": ("wal", "Show and steer for whom commits wait; move WAL for a server."),
    "check": ("check", "Try whether WAL arrives in the repository, and what could stop it."),
    "health": ("health", "Show the health of every endpoint and server."),
    "render": ("render", "Render every document of the stack from the spec."),
    "ui": ("ui", "Serve the Dagster UI, daemon and code server."),
    "demo": ("demo", "Run the main job on the embedded stack and show what happened."),
    "demo-recovery": ("demo_recovery", "Lose everything but the bucket on the embedded stack, and recover."),
}


class LazyCommands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"synapse_ops.cli.{name}"), attribute or "command")
        if not isinstance(command, click.Command):
            raise TypeError(f"synapse_ops.cli.{name}.{attribute or 'command'} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="synapse-ops")
def cli() -> None:
    """Backup with proof, retention and health of a small AI stack.

    \b
    Examples:
      synapse-ops spec check infrastructure.yaml
      synapse-ops backup now --spec infrastructure.yaml
      synapse-ops backup list --repository s3://backups/database/
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit with its code."""
    from synapse_ops.systems.log_output import configure_logging, take_over_libraries

    configure_logging()
    take_over_libraries()
    wants_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(cli.main(args=arguments, prog_name="synapse-ops", standalone_mode=False) or 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as usage:
        if wants_json:
            show_error(ConfigError(usage.format_message(), hint=_help_hint(usage)), as_json=True)
        else:
            usage.show()
        sys.exit(2)
    except SynapseOpsError as error:
        show_error(error, as_json=wants_json)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say nothing more
        sys.exit(0)
    except Exception as bug:  # noqa: BLE001 - the last resort: an operator never sees a traceback
        last = error_of_bug(bug)
        show_error(last, as_json=wants_json)
        sys.exit(last.exit_code)


def _help_hint(usage: click.ClickException) -> str:
    context = usage.ctx if isinstance(usage, click.UsageError) else None
    return f"`{context.command_path if context else 'synapse-ops'} --help` lists what is allowed."
