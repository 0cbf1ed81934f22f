"""The embedded stack survives whatever is done to its processes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest

from synapse_ops.domain.backup.layout import timeline_end_key
from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.local import layout as layout_module
from synapse_ops.local.embedded_stack import (
    RunningStack,
    living,
    reset_stack,
    stack_status,
    start_stack,
    stop_stack,
)
from synapse_ops.local.layout import far_root, find_layout
from synapse_ops.local.stack import SERVER_NAMES
from synapse_ops.operations.failover.armed import NAME
from synapse_ops.operations.failover.ledger import Ledger, Pause
from synapse_ops.operations.health.report import read_health
from synapse_ops.operations.release import document_changes
from synapse_ops.operations.release import store as release
from synapse_ops.operations.stack import open_stack
from synapse_ops.services.dagster.home import HOME_VARIABLE
from synapse_ops.spec import load_spec
from synapse_ops.systems.certificates import days_left_of_server
from synapse_ops.systems.host.processes import START_TIMEOUT_S, ProcessMark, server_identity
from synapse_ops.systems.postgres.server import FENCE_MARKER, make_socket_dir
from tests.servers import servers_dir
from tests.surroundings import HOSTILE

pytestmark = pytest.mark.scenario

POLL_S = 0.25  # a look at the environment of every process of the host costs more than what is waited for
GONE_TIMEOUT_S = STREAMING_TIMEOUT_S = 180.0  # a busy host: no claim here is about seconds


STANDBYS = "select count(*) from pg_stat_replication where application_name = 'db-standby'"  # not the WAL receiver


def up(state_dir: Path) -> RunningStack:
    """Start a stack that ends with this test process: then a killed test run leaves none."""
    return start_stack(state_dir, die_with_us=True)


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """A state directory with a path of more than 107 bytes, spaces and letters beyond ASCII."""
    folder = servers_dir("stack")
    folder.chmod(0o755)
    chosen = folder / ("lang und größer " * 7).strip() / ".synapse"
    never = datetime.now(UTC) + timedelta(days=1)
    Ledger.of(chosen).set_pause(Pause(never, "these tests kill servers"))
    yield chosen
    reset_stack(chosen)
    shutil.rmtree(folder)


def pids(state_dir: Path) -> dict[str, int | None]:
    return {name: server.pid for name, server in stack_status(state_dir).servers.items()}


def admin(state_dir: Path, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    conninfo = (state_dir / "secrets" / "database-admin.url").read_text().strip()
    return psycopg.connect(conninfo, dbname=database, autocommit=True)


def value(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> object:
    row = connection.execute(statement).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_S)
    return condition()


def test_every_server_runs_with_what_later_protection_relies_on(state_dir: Path) -> None:
    """Checksums, hint bits in the WAL, a bounded slot, TLS and SCRAM are on from the first start."""
    stack = up(state_dir)

    assert {name: server.state for name, server in stack.state.servers.items()} == dict.fromkeys(
        SERVER_NAMES, "running"
    )
    with admin(state_dir) as connection:
        assert value(connection, "show data_checksums") == "on"
        assert value(connection, "show wal_log_hints") == "on"
        assert value(connection, "show max_slot_wal_keep_size") == "512MB"
        assert value(connection, "show wal_retrieve_retry_interval") == "200ms"
        assert value(connection, "select ssl from pg_stat_ssl where pid = pg_backend_pid()") is True
        assert value(connection, "select bool_and(rolpassword like 'SCRAM%') from pg_authid where rolcanlogin") is True
        streaming = f"{STANDBYS} and state = 'streaming'"
        assert wait_for(lambda: value(connection, streaming) == 1, STREAMING_TIMEOUT_S)
        assert (
            value(
                connection,
                "select active and wal_status = 'reserved' from pg_replication_slots where slot_name = 'db_standby'",
            )
            is True
        )
        directories = str(value(connection, "show unix_socket_directories"))
    assert not Path(directories).is_relative_to(find_layout(state_dir).data)


def test_the_health_of_the_stack_says_whether_failover_is_armed(state_dir: Path) -> None:
    """And why not: here it is paused."""
    up(state_dir)

    def said() -> bool:
        rows = read_health(state_dir, datetime.now(UTC)).rows
        return any(row.probe.name == NAME and "these tests kill servers" in row.condition.reason for row in rows)

    assert wait_for(said, STREAMING_TIMEOUT_S)


def test_a_look_at_a_certificate_leaves_no_word_in_a_servers_log(state_dir: Path) -> None:
    """The prober looks every five minutes; a connection that breaks off is logged as a reset, and hides real ones."""
    stack = up(state_dir)
    log = find_layout(state_dir).log("db-primary")
    before = log.stat().st_size

    days = asyncio.run(days_left_of_server("127.0.0.1", stack.state.ports["db-primary"], is_postgres=True))

    with admin(state_dir) as connection:
        connection.execute("do $$ begin raise log 'looked at'; end $$")
    told = log.read_bytes()[before:].decode()
    assert days is not None
    assert "looked at" in told
    assert "could not receive data" not in told


def test_the_spec_of_the_stack_is_valid_and_its_secrets_open_the_servers(state_dir: Path) -> None:
    """Everything else knows only <state_dir>/infrastructure.yaml."""
    stack = up(state_dir)

    spec = load_spec(stack.spec_path).spec
    assert spec.database.port == stack.state.ports["db-primary"]
    with psycopg.connect(spec.database.admin.resolve().strip()) as connection:
        assert value(connection, "select rolsuper from pg_roles where rolname = current_user") is True


def test_an_up_on_a_running_stack_changes_nothing(state_dir: Path) -> None:
    """`up` is safe at any time: the same processes, the same spec, byte for byte."""
    first = up(state_dir)
    before = (pids(state_dir), first.spec_path.read_bytes())

    up(state_dir)

    assert (pids(state_dir), first.spec_path.read_bytes()) == before


def test_two_ups_at_once_start_every_server_once(state_dir: Path) -> None:
    """The lock serialises them: both return with every server ready, and nothing runs twice.

    Their shell has proxies, authorities and libpq's defaults of other work, which no server of the stack takes over.
    """
    stop_stack(state_dir)
    argv = [sys.executable, "-m", "synapse_ops", "local", "up", "--state-dir", str(state_dir)]
    environment = {**os.environ, **HOSTILE}
    both = [
        subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(2)
    ]

    outcomes = [(process.communicate()[1], process.returncode) for process in both]
    named, alive = pids(state_dir), living(find_layout(state_dir))
    stop_stack(state_dir)

    assert [code for _, code in outcomes] == [0, 0], outcomes
    for name in ("redis", "qdrant", "s3", "api", "watch", "wal"):  # each is one process
        assert [mark.pid for key, mark in alive.items() if key.startswith(f"{name}/")] == [named[name]]


@pytest.mark.parametrize("victim", SERVER_NAMES)
def test_a_server_killed_with_sigkill_is_started_by_the_next_up_and_only_it(state_dir: Path, victim: str) -> None:
    """No supervisor restarts anything by itself; `up` starts what is missing and touches nothing else."""
    up(state_dir)
    with admin(state_dir) as connection:
        connection.execute("create table if not exists kept (n int)")
        connection.execute("insert into kept values (1)")
        count = value(connection, "select count(*) from kept")
    before = pids(state_dir)
    killed = before[victim]
    assert killed is not None

    os.kill(killed, signal.SIGKILL)
    assert wait_for(lambda: stack_status(state_dir).servers[victim].state != "running", GONE_TIMEOUT_S)
    up(state_dir)

    after = pids(state_dir)
    assert {name for name in SERVER_NAMES if after[name] != before[name]} == {victim}
    with admin(state_dir) as connection:
        assert value(connection, "select count(*) from kept") == count


@contextmanager
def owned_stack(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that a whole stack ends with, as the demo and the UI are."""
    code = "import sys, time; from pathlib import Path; from synapse_ops.local.embedded_stack import running_stack"
    code += (
        "\nwith running_stack(Path(sys.argv[1])):"
        "\n    try: print('ready', flush=True); time.sleep(600)"
        "\n    finally: print('ending', flush=True); time.sleep(0.5); print('ended', flush=True)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(state_dir)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        yield owner
    finally:
        owner.kill()
        owner.communicate()


def test_servers_do_not_outlive_a_killed_owner(state_dir: Path) -> None:
    """kill -9 of the demo: the kernel ends every server with it (PR_SET_PDEATHSIG)."""
    stop_stack(state_dir)
    with owned_stack(state_dir) as owner:
        alive = living(find_layout(state_dir))
        assert stack_status(state_dir).owner == ProcessMark.of(owner.pid)

        owner.kill()

        assert alive
        assert wait_for(lambda: not living(find_layout(state_dir)), GONE_TIMEOUT_S), living(find_layout(state_dir))
    assert {server.state for server in stack_status(state_dir).servers.values()} == {"ended"}


def test_an_up_right_after_the_owner_was_killed_starts_what_is_on_its_way_out(state_dir: Path) -> None:
    """A server that still lives while it stops for its dead owner is not taken for one that runs."""
    stop_stack(state_dir)
    with owned_stack(state_dir) as owner:
        before = pids(state_dir)
        owner.kill()
        owner.wait()

        after = up(state_dir)

    assert not set(before.values()) & {server.pid for server in after.state.servers.values()}
    assert all(server.state == "running" for server in stack_status(state_dir).servers.values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_owner_that_is_told_to_end_stops_the_stack_in_order(state_dir: Path, number: signal.Signals) -> None:
    """Not the kernel alone: a stop in order is recorded, and takes the folders of the sockets away."""
    stop_stack(state_dir)
    with owned_stack(state_dir) as owner:
        owner.send_signal(number)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ending\n"
        if number != signal.SIGINT:  # a terminal that closes sends SIGHUP more than once: the end is not interrupted
            owner.send_signal(number)
        assert owner.stdout.readline() == "ended\n"
        owner.wait(GONE_TIMEOUT_S)

    assert living(find_layout(state_dir)) == {}
    assert {server.state for server in stack_status(state_dir).servers.values()} == {"stopped"}


def test_a_stack_that_ran_before_goes_on_after_the_ui_and_the_demo(state_dir: Path) -> None:
    """They stop what they started, and nothing else."""
    up(state_dir)
    before = pids(state_dir)
    with owned_stack(state_dir) as owner:
        owner.send_signal(signal.SIGTERM)
        owner.wait(GONE_TIMEOUT_S)

    assert pids(state_dir) == before


def test_a_second_ui_or_demo_is_refused_before_it_touches_anything(state_dir: Path) -> None:
    """It names the first, starts nothing beside it, and above all stops nothing of it."""
    stop_stack(state_dir)
    with owned_stack(state_dir) as owner:
        before = pids(state_dir)
        for command in ("demo", "ui"):
            argv = [sys.executable, "-m", "synapse_ops", command, "--state-dir", str(state_dir)]
            second = subprocess.run(argv, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
            assert second.returncode == 10
            assert f"pid {owner.pid}" in second.stderr
            assert "nothing was started or stopped" in second.stderr
        assert pids(state_dir) == before
        assert named_running(state_dir) == set(SERVER_NAMES)


def test_an_up_right_after_every_process_was_killed_works(state_dir: Path) -> None:
    """Nothing needs time to settle: orphans are ended, stale pid files, locks and sockets are recognised."""
    up(state_dir)
    for mark in living(find_layout(state_dir)).values():
        mark.signal(signal.SIGKILL)

    up(state_dir)

    assert all(server.state == "running" for server in stack_status(state_dir).servers.values())


def test_no_password_is_in_an_argument_list_the_state_or_a_log(state_dir: Path) -> None:
    """Secrets live in files of mode 0600 and nowhere else that anybody can read."""
    up(state_dir)
    layout = find_layout(state_dir)
    secrets = [path.read_text().strip() for path in layout.secrets.iterdir() if path.name.endswith("password")]
    command_lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    files = [layout.state_file, layout.spec_file, *layout.logs.iterdir()]
    texts = command_lines + [path.read_text(errors="replace") for path in files]

    assert len(secrets) >= 6
    assert not [text[:80] for text in texts for secret in secrets if secret in text]
    assert {path.stat().st_mode & 0o777 for path in layout.secrets.iterdir()} == {0o600}


def test_a_port_taken_while_the_stack_was_down_is_replaced_in_the_spec(state_dir: Path) -> None:
    """A stranger on our port costs an address, not the stack; every other port stays."""
    before = up(state_dir).state.ports
    stop_stack(state_dir)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # our own old connections linger there
        stranger.bind(("127.0.0.1", before["db-primary"]))
        stranger.listen()

        stack = up(state_dir)

    assert {name for name in before if stack.state.ports[name] != before[name]} == {"db-primary"}
    assert load_spec(stack.spec_path).spec.database.port == stack.state.ports["db-primary"]
    with admin(state_dir) as connection:
        assert wait_for(
            lambda: value(connection, STANDBYS) == 1,
            STREAMING_TIMEOUT_S,
        )


def test_a_fenced_server_is_not_started_and_the_others_are(state_dir: Path) -> None:
    """A fence is durable, and it is a state: `up` starts all else, says what the marker says, removes nothing."""
    up(state_dir)
    stop_stack(state_dir)
    marker = find_layout(state_dir).data / "db-primary" / FENCE_MARKER
    marker.write_text("20261130T114210Z-3f9a1c\n")
    try:
        up(state_dir)

        servers = stack_status(state_dir).servers
        assert (servers["db-primary"].state, servers["db-primary"].detail) == ("fenced", "20261130T114210Z-3f9a1c")
        assert {servers[name].state for name in SERVER_NAMES if name != "db-primary"} == {"running"}
        assert marker.exists()
    finally:
        marker.unlink()


def test_a_primary_whose_timeline_another_one_ended_is_not_started_and_the_others_are(state_dir: Path) -> None:
    """The repository holds the claim of an incident that no ledger here knows: somewhere a standby was promoted."""
    stack = up(state_dir)
    with admin(state_dir) as connection:
        identifier = str(value(connection, "select system_identifier from pg_control_system()"))
        timeline = int(str(value(connection, "select timeline_id from pg_control_checkpoint()")))
    store = open_stack(stack.spec_path, state_dir).database_repository().store
    key, marker = timeline_end_key(identifier, timeline), find_layout(state_dir).data / "db-primary" / FENCE_MARKER
    store.put_bytes(key, b'{"incident": "20261130T114210Z-3f9a1c"}')
    try:
        stop_stack(state_dir)
        up(state_dir)

        servers = stack_status(state_dir).servers
        assert (servers["db-primary"].state, servers["db-primary"].detail) == ("fenced", "20261130T114210Z-3f9a1c")
        assert {servers[name].state for name in SERVER_NAMES if name != "db-primary"} == {"running"}
    finally:
        store.delete([key])
        marker.unlink(missing_ok=True)


def test_down_leaves_no_process_no_socket_folder_and_says_so(state_dir: Path) -> None:
    """After `down` nothing of the stack lives; a second `down` has nothing to do."""
    up(state_dir)
    folders = [make_socket_dir(find_layout(state_dir).data / name, server_identity()) for name in SERVER_NAMES[:3]]
    assert all(any(folder.iterdir()) for folder in folders)

    assert stop_stack(state_dir) is True

    assert not any(folder.exists() for folder in folders)
    assert living(find_layout(state_dir)) == {}
    assert {server.state for server in stack_status(state_dir).servers.values()} == {"stopped"}
    assert stop_stack(state_dir) is False


@contextmanager
def in_a_terminal(state_dir: Path, *command: str) -> Iterator[None]:
    """Run a command in a shell with a terminal of its own, which is closed at the end."""
    shell, terminal = os.forkpty()
    if shell == 0:
        os.execv("/bin/sh", ["/bin/sh", "-i"])
    reader = threading.Thread(target=_read_all, args=[terminal], daemon=True)
    try:
        argv = [sys.executable, "-m", "synapse_ops", *command, "--state-dir", str(state_dir)]
        os.write(terminal, f"{shlex.join(argv)}\n".encode())
        reader.start()
        yield
    finally:
        os.close(terminal)
        os.waitpid(shell, 0)


def _read_all(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 4096):
            pass


def of_dagster(state_dir: Path) -> list[int]:
    """Return the pids of the Dagster processes of a state directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(HOME_VARIABLE) == str(state_dir.resolve() / "dagster"):
                found.append(process.pid)
    return found


@pytest.mark.parametrize("command", ["demo", "ui"])
def test_a_closed_terminal_leaves_no_process_of_the_demo_or_the_ui(state_dir: Path, command: str) -> None:
    """Servers, code server, daemon, webserver and prober: all end when the window is closed."""
    up(state_dir)  # there is a stack for the UI
    stop_stack(state_dir)

    with in_a_terminal(state_dir, command):
        assert wait_for(lambda: bool(of_dagster(state_dir)), START_TIMEOUT_S)
        assert living(find_layout(state_dir))

    assert wait_for(lambda: not living(find_layout(state_dir)), GONE_TIMEOUT_S), living(find_layout(state_dir))
    assert wait_for(lambda: not of_dagster(state_dir), GONE_TIMEOUT_S), of_dagster(state_dir)


def test_what_up_started_outlives_its_terminal_until_down(state_dir: Path) -> None:
    """`local up` needs no terminal: its servers have sessions of their own."""
    stop_stack(state_dir)

    with in_a_terminal(state_dir, "local", "up"):
        assert wait_for(lambda: "watch" in named_running(state_dir), START_TIMEOUT_S)

    assert named_running(state_dir) == set(SERVER_NAMES)
    assert stop_stack(state_dir) is True
    assert living(find_layout(state_dir)) == {}


def named_running(state_dir: Path) -> set[str]:
    return {name for name, server in stack_status(state_dir).servers.items() if server.state == "running"}


def test_a_half_made_data_directory_is_made_again(state_dir: Path) -> None:
    """initdb and pg_basebackup work under another name: what a kill left of them is removed, never started."""
    stop_stack(state_dir)
    data = find_layout(state_dir).data
    shutil.rmtree(data / "db-standby")
    (data / "db-standby.making" / "base").mkdir(parents=True)
    (data / "db-standby.making" / "PG_VERSION").write_text("17\n")

    up(state_dir)

    assert not (data / "db-standby.making").exists()
    assert (data / "db-standby" / "standby.signal").exists()


def test_a_nearly_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with both numbers, and no half-made stack."""
    monkeypatch.setattr(layout_module, "COLD_FREE_BYTES", 1 << 60)

    with pytest.raises(Refused, match="MiB free, 1099511627776 MiB needed"):
        up(tmp_path / ".synapse")

    assert not (tmp_path / ".synapse").exists()
    assert not far_root(tmp_path / ".synapse").exists()


def test_an_edited_spec_that_is_not_yaml_is_refused_by_name(state_dir: Path) -> None:
    """An operator's file is never overwritten because it has a fault."""
    path = up(state_dir).spec_path
    kept = path.read_text()
    path.write_text("name: [synapse\n")
    try:
        with pytest.raises(SynapseOpsError, match=r"infrastructure\.yaml: it is not YAML"):
            up(state_dir)

        assert path.read_text() == "name: [synapse\n"
    finally:
        path.write_text(kept)


def test_an_operators_edit_of_the_spec_survives_the_next_up(state_dir: Path) -> None:
    """Only addresses are renewed."""
    path = up(state_dir).spec_path
    path.write_text(path.read_text().replace("retention: 30d ", "retention: 12d ", 1))

    up(state_dir)

    assert load_spec(path).spec.backup.database.retention.days == 12


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers under another identity")
def test_a_state_directory_that_servers_cannot_enter_lives_under_var_lib(tmp_path: Path) -> None:
    """Below a home of mode 0700 the whole state directory is a link; reset removes both."""
    tmp_path.chmod(0o700)
    state_dir = tmp_path / ".synapse"

    up(state_dir)
    target = state_dir.resolve()
    removed = reset_stack(state_dir)

    assert target.parent == layout_module.FAR_ROOT
    assert removed
    assert not target.exists()
    assert not state_dir.is_symlink()


def test_reset_removes_what_is_ours_and_nothing_else(state_dir: Path) -> None:
    """A foreign file in the state directory stays; what rendering keeps there goes with the data."""
    up(state_dir)
    for name in (release.FOLDER, document_changes.FOLDER):
        (state_dir / name / "of-a-digest").mkdir(parents=True)
    foreign = state_dir / "not-ours.txt"
    foreign.write_text("kept")

    reset_stack(state_dir)

    assert [path.name for path in state_dir.iterdir()] == ["not-ours.txt"]
    foreign.unlink()


def test_status_is_readable_by_machines(state_dir: Path) -> None:
    """`local status --json` has one stable shape, and exit code 12 when a started server ended."""
    up(state_dir)
    argv = [sys.executable, "-m", "synapse_ops", "local", "status", "--json", "--state-dir", str(state_dir)]

    healthy = subprocess.run(argv, capture_output=True, text=True, check=False)
    redis = pids(state_dir)["redis"]
    assert redis is not None
    os.kill(redis, signal.SIGKILL)
    assert wait_for(lambda: ProcessMark.of(redis) is None, GONE_TIMEOUT_S)  # our child: a zombie until it is waited for
    ill = subprocess.run(argv, capture_output=True, text=True, check=False)

    document = json.loads(healthy.stdout)
    assert set(document) == {"format", "owner", "servers", "ports"}
    assert set(document["servers"]) == set(SERVER_NAMES)
    assert (healthy.returncode, ill.returncode) == (0, 12)
