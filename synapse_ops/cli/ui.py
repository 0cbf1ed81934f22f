"""`synapse-ops ui`: the Dagster UI, daemon and code server of a stack, until Ctrl-C."""

from __future__ import annotations

import signal

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo
from synapse_ops.systems.host.errors import host_errors


@click.command(name="ui")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the UI on 127.0.0.1. Default: a free one.")
@click.option("--new-url", is_flag=True, help="Print a new one-time URL of the running UI, and exit.")
@stack_options
def command(port: int | None, new_url: bool, place: Place) -> None:
    """Serve the Dagster UI, daemon and code server.

    The URL printed opens a session once; --new-url prints another. Ctrl-C ends everything that this command started.

    \b
    Examples:
      synapse-ops ui
      synapse-ops ui --port 3000
      synapse-ops ui --new-url
    """
    from synapse_ops.local.embedded_stack import only_runner, running_stack
    from synapse_ops.services.dagster import service as dagster
    from synapse_ops.services.dagster.home import has_embedded_stack

    if new_url:
        echo(dagster.url_of_running(place.state_dir.absolute()))
        return
    state_dir = place.state_dir.absolute()
    run = running_stack if has_embedded_stack(state_dir) else only_runner
    with host_errors(state_dir), run(state_dir):
        service = dagster.DagsterService(state_dir, place.found_spec(), port=port)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: service.supervisor.stop())
        with dagster.running(service):
            echo(f"Dagster of {place.state_dir}: {service.new_url()}")
            echo("This URL works once; `synapse-ops ui --new-url` prints another. Ctrl-C stops the UI.", err=True)
            service.supervisor.wait_until_ended(timeout_s=None)
