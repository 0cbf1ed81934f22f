"""One process: Dagster's webserver behind the guard (`python -m synapse_ops.services.dagster.webserver`).

Settings and secrets come by environment and file, never by argv; the access log is off, because a URL can hold the
one-time token.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.resources import files
from pathlib import Path

from synapse_ops.services.dagster.webserver_guard import App, GuardSettings, WebserverGuard

SESSION_VARIABLE = "SYNAPSE_UI_SESSION"
ONE_TIME_FILE_VARIABLE = "SYNAPSE_UI_ONE_TIME_FILE"
HOST_VARIABLE = "SYNAPSE_UI_HOST"
PORT_VARIABLE = "SYNAPSE_UI_PORT"
ALLOWED_HOSTS_VARIABLE = "SYNAPSE_UI_HOSTS"  # more Host headers, comma-separated: behind a proxy
REPORT_VARIABLE = "SYNAPSE_REPORT_TOKEN"

_STATEMENT_TIMEOUT_MS = 15_000  # dagster-webserver's own default


def guard_settings(environ: dict[str, str]) -> GuardSettings:
    """Return the guard's settings for what the supervisor put into the environment."""
    port = environ[PORT_VARIABLE]
    names = {environ[HOST_VARIABLE], "127.0.0.1", "localhost", "[::1]"}
    extra = {name.strip().lower() for name in environ.get(ALLOWED_HOSTS_VARIABLE, "").split(",") if name.strip()}
    return GuardSettings(
        hosts=frozenset({f"{name}:{port}" for name in names} | extra),
        cookie_name=f"synapse_session_{port}",  # cookies ignore ports: two UIs of one host must not log each other out
        session_secret=environ[SESSION_VARIABLE],
        token_file=Path(environ[ONE_TIME_FILE_VARIABLE]),
        report_token=environ.get(REPORT_VARIABLE) or None,
        runbooks=runbooks_folder(),
    )


def runbooks_folder() -> Path | None:
    """Return the folder of the runbooks: of the checkout, or of the installed package."""
    package = Path(str(files("synapse_ops")))
    candidates = (package.parent / "docs" / "runbooks", package / "runbooks")
    return next((folder for folder in candidates if folder.is_dir()), None)


def serve(environ: dict[str, str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    import uvicorn
    from dagster import DagsterInstance
    from dagster_webserver.app import create_app_from_workspace_process_context

    from synapse_ops.services.dagster.pooled_storage import limit_statements
    from synapse_ops.systems.dagster_storage import open_workspace

    with DagsterInstance.get() as instance:
        limit_statements(instance, _STATEMENT_TIMEOUT_MS)
        with open_workspace(instance, Path(environ["DAGSTER_HOME"]) / "workspace.yaml") as workspace:
            app: App = create_app_from_workspace_process_context(workspace)
            config = uvicorn.Config(
                WebserverGuard(app, guard_settings(environ)),
                host=environ[HOST_VARIABLE],
                port=int(environ[PORT_VARIABLE]),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
            uvicorn.Server(config).run()


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor decides when the terminal closes
    serve(dict(os.environ))
    sys.exit(0)
