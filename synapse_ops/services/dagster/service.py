"""Code server, daemon, guarded webserver and prober of one state directory, supervised together.

    start    one supervisor per state directory (a lock); what a killed one left behind is ended and its runs are failed
    run      a crash is answered by a restart; a new valid spec by a new code server (runs in progress go on)
    stop     webserver, daemon, code server, then whatever they started

The code server comes first: a daemon that finds none waits for up to 17 s before its first tick.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from synapse_ops.errors import ConfigError, Refused, Unreachable
from synapse_ops.operations.health.report import is_watched
from synapse_ops.operations.spec_in_force import read_spec_in_force
from synapse_ops.services.dagster import webserver
from synapse_ops.services.dagster.down_alarm import DownAlarm, why_it_ended, why_silent
from synapse_ops.services.dagster.home import (
    HOME_VARIABLE,
    DagsterHome,
    dagster_environment,
    prepare_home,
)
from synapse_ops.services.dagster.process_tree import become_subreaper, end_all, left_by_dead_supervisors
from synapse_ops.services.dagster.program_keeper import Program, Supervisor
from synapse_ops.services.dagster.webserver_guard import HEALTH_PATH, OPEN_PATH
from synapse_ops.services.spec_watch import SpecWatch
from synapse_ops.systems.host.file_lock import held_lock
from synapse_ops.systems.host.processes import START_TIMEOUT_S

if TYPE_CHECKING:
    from dagster import DagsterInstance

CODE_SERVER = "code-server"
DAEMON = "daemon"
WEBSERVER = "webserver"
WATCH = "watch"

_LEFT_OVER_GRACE_S = 4.0
_CODE_SERVER_GRACE_S = 3.0  # it waits for its runs, which are to go on without it
_PROBE_TIMEOUT_S = 2.0
_LOOPBACK = "127.0.0.1"
_QUIET = ("--log-level", "warning")  # a line for each tick that had nothing to do is most of a log

log = structlog.get_logger()


class DagsterService:
    """The Dagster processes of one state directory. `run` blocks; see `running` for a separate thread."""

    def __init__(self, state_dir: Path, spec_path: Path, *, serve_ui: bool = True, port: int | None = None) -> None:
        """port: of the webserver; None takes a free one. Raises ConfigError when storage is not named."""
        read_spec_in_force(spec_path, state_dir.resolve())  # a spec that never was valid is refused here, not in a log
        self.home: DagsterHome = prepare_home(state_dir, spec_path)
        self.code_port = free_port()
        self.environment = dagster_environment(self.home, code_port=self.code_port)
        self.port = _unused(port) if port else free_port()
        self._serve_ui = serve_ui
        self._spec_path = spec_path.absolute()
        self._session_secret = secrets.token_urlsafe(32)
        self._watch = SpecWatch(spec_path, self.home.state_dir)
        self._down_alarm = DownAlarm(self._watch.spec.name, self._watch.spec.alerting.runbook_url)
        self._began_s = time.time()
        self.supervisor = Supervisor(self._programs(), on_tick=self._restarts, on_down=self._look_at_down)

    @property
    def token_file(self) -> Path:
        """The file that holds the one-time token until it is used."""
        return self.home.dir / "one-time-token"

    def new_url(self) -> str:
        """Write a new one-time token, which voids the last one, and return the URL that uses it."""
        return write_one_time_url(self.token_file, self.port)

    def run(self) -> None:
        """Serve until `supervisor.stop()`. Raises Refused when another supervisor has the state directory."""
        with _only_supervisor(self.home):
            become_subreaper()
            self._clear_left_overs()
            if self._serve_ui:
                (self.home.dir / "port").write_text(str(self.port), encoding="ascii")
            self.supervisor.run()
            self.token_file.unlink(missing_ok=True)
            self._fail_abandoned_runs("the supervisor was stopped while this run was in progress")

    def _clear_left_overs(self) -> None:
        """End what a killed supervisor left behind, and fail its runs, whose pool slots would block new ones."""
        left = left_by_dead_supervisors(HOME_VARIABLE, self.home.dir)
        end_all(left, grace_s=_LEFT_OVER_GRACE_S)
        if left:
            log.warning("processes of a dead supervisor were ended", count=len(left))
        self._fail_abandoned_runs("its process is gone: the supervisor above it was killed")

    def _fail_abandoned_runs(self, reason: str) -> None:
        from synapse_ops.systems.dagster_storage import fail_abandoned_runs

        with dagster_instance(self.environment) as instance:
            for run_id in fail_abandoned_runs(instance, reason):
                log.warning("run was abandoned", run_id=run_id, reason=reason)

    def _restarts(self) -> Sequence[str]:
        return [CODE_SERVER] if self._watch.has_new_spec() else []

    def _look_at_down(self, down: Mapping[str, Path]) -> None:
        """Raise an alarm for what ends again and again, and for a daemon that hangs and calls itself well."""
        reasons: dict[str, Callable[[], str]] = {
            name: partial(why_it_ended, log_path, self._spec_path) for name, log_path in down.items()
        }
        silence = why_silent(self.home.state_dir, self._began_s, time.time(), self._log(DAEMON))
        if silence and not down:
            reasons[DAEMON] = lambda: silence
        self._down_alarm.look(reasons)

    def _log(self, name: str) -> Path:
        return self.home.dir / "logs" / f"{name}.log"

    def _programs(self) -> list[Program]:
        python = sys.executable
        address = ["-h", _LOOPBACK, "-p", str(self.code_port)]
        grpc = ["-m", "dagster", "api", "grpc", "-m", "synapse_ops.definitions", *address]
        programs = [
            self._program(
                CODE_SERVER, [python, *grpc, "--location-name", "synapse_ops", *_QUIET], self._code_server_answers
            ),
            self._program(
                DAEMON, [python, "-m", "dagster._daemon", "run", "-w", str(self.home.workspace), *_QUIET], lambda: True
            ),
        ]
        if self._serve_ui:
            argv = [python, "-m", "synapse_ops.services.dagster.webserver"]
            more = {
                # in a container that publishes the port, it is to listen on every address
                webserver.HOST_VARIABLE: os.environ.get(webserver.HOST_VARIABLE, _LOOPBACK),
                webserver.PORT_VARIABLE: str(self.port),
                webserver.SESSION_VARIABLE: self._session_secret,
                webserver.ONE_TIME_FILE_VARIABLE: str(self.token_file),
            }
            programs.append(self._program(WEBSERVER, argv, self._webserver_answers, more))
            if not is_watched(self.home.state_dir):
                programs.append(self._watch_program(python))
        return programs

    def _watch_program(self, python: str) -> Program:
        """Return the prober; it goes on when Dagster's own processes are restarted, and no start waits for it."""
        argv = [python, "-m", "synapse_ops.services.watch", "--wait"]
        argv += ["--spec", str(self._spec_path), "--state-dir", str(self.home.state_dir)]
        return self._program(WATCH, argv, lambda: True)

    def _program(
        self, name: str, argv: Sequence[str], is_ready: Callable[[], bool], more: Mapping[str, str] | None = None
    ) -> Program:
        grace = {"stop_grace_s": _CODE_SERVER_GRACE_S} if name == CODE_SERVER else {}
        log_path = self._log(name)
        environment = {**self.environment, **(more or {})}
        return Program(name, argv, environment, self.home.dir, log_path, is_ready, **grace)

    def _code_server_answers(self) -> bool:
        try:
            socket.create_connection((_LOOPBACK, self.code_port), timeout=_PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def _webserver_answers(self) -> bool:
        import httpx

        try:
            reply = httpx.get(f"http://{_LOOPBACK}:{self.port}{HEALTH_PATH}", timeout=_PROBE_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError:
            return False
        return reply.status_code == httpx.codes.OK


@contextmanager
def running(service: DagsterService, *, timeout_s: float = START_TIMEOUT_S) -> Iterator[DagsterService]:
    """Run a service in a thread while the block runs; it is ready when the block begins, gone when it ends."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as failure:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(failure)
            service.supervisor.abandon()

    # A daemon: should an interrupt hit between two lines here, the process ends all the same, and its programs with it.
    thread = threading.Thread(target=run, name="dagster-service", daemon=True)
    try:
        thread.start()
        service.supervisor.wait_until_ready(timeout_s)
        yield service
    finally:
        service.supervisor.stop()
        if thread.ident is not None:
            thread.join()
        if failures:
            raise failures[0]


@contextmanager
def dagster_instance(environment: Mapping[str, str]) -> Iterator[DagsterInstance]:
    """Yield the DagsterInstance of an environment built by `dagster_environment`.

    dagster.yaml takes its values from os.environ, so ours are put there while the block runs.
    Raises Unreachable when Dagster's home is gone, or its storage goes away, before or during the block.
    """
    if not Path(environment[HOME_VARIABLE]).is_dir():
        raise Unreachable(
            f"Dagster's home {environment[HOME_VARIABLE]} is gone",
            hint="Was the stack reset meanwhile? `synapse-ops local up` makes a new one.",
        )
    ours = {name: value for name, value in environment.items() if name.startswith(("DAGSTER_", "SYNAPSE_"))}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        from dagster import DagsterInstance  # reads its time limits from os.environ as it is imported

        with _storage_errors(), DagsterInstance.from_config(environment[HOME_VARIABLE]) as instance:
            yield instance
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _storage_errors() -> Iterator[None]:
    from dagster_postgres.utils import DagsterPostgresException
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (DagsterPostgresException, OperationalError) as lost:
        raise Unreachable(
            "could not reach Dagster's own storage",
            detail=str(lost).splitlines()[0],
            hint="On the embedded stack it is the server ops: `synapse-ops local up` starts it again.",
        ) from lost


def write_one_time_url(token_file: Path, port: int) -> str:
    """Write a one-time token that only we can read, and return its URL."""
    token = secrets.token_urlsafe(32)
    partial = token_file.with_suffix(".part")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    partial.replace(token_file)
    return f"http://{_LOOPBACK}:{port}{OPEN_PATH}?token={token}"


def url_of_running(state_dir: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Return a new one-time URL of the UI that another process serves. Raises Refused when none is served.

    environ: of a webserver's container, which has no supervisor, it names the token's file and the port.
    """
    if named := environ.get(webserver.ONE_TIME_FILE_VARIABLE):
        return write_one_time_url(Path(named), int(environ[webserver.PORT_VARIABLE]))
    home = state_dir / "dagster"
    with (home / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return write_one_time_url(home / "one-time-token", int((home / "port").read_text(encoding="ascii")))
    raise Refused(f"no UI is served for {state_dir}", hint="`synapse-ops ui` serves it.")


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _unused(port: int) -> int:
    """Return the port. Raises ConfigError when something listens on it already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"could not serve the UI on port {port}: {error.strerror}",
                hint="Name another --port, or none for a free one.",
            ) from error
    return port


@contextmanager
def _only_supervisor(home: DagsterHome) -> Iterator[None]:
    """Hold the state directory's lock. The kernel lets go of it however we end."""
    taken = Refused(
        f"another supervisor serves Dagster for {home.state_dir}",
        hint="Use the UI that it serves (`synapse-ops ui --new-url`), or stop it with Ctrl-C.",
    )
    with held_lock(home.dir / "supervisor.lock", taken):
        yield
