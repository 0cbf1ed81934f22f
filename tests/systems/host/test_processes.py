"""Only our own processes are signalled, they die with us, and programs reach the identity that runs them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from synapse_ops.errors import ConfigError, DeadlineExceeded, ToolFailed
from synapse_ops.systems.host.processes import (
    ProcessMark,
    ServerIdentity,
    end_process,
    free_ports,
    processes_in,
    reachable_by,
    run_as,
    server_identity,
)
from synapse_ops.systems.postgres.programs import find_pg_tools, tools_for
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from tests.servers import servers_dir

GONE_TIMEOUT_S = 10.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers under another identity")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = servers_dir("unit")
    yield made
    shutil.rmtree(made)


def server_in(folder: Path) -> PgServer:
    identity = server_identity()
    data_dir = folder / "data"
    tools = tools_for(identity, find_pg_tools(17), folder / "programs")
    return PgServer(tools, identity, data_dir, make_socket_dir(data_dir, identity), 5432, folder / "log")


def test_a_reused_pid_is_never_signalled() -> None:
    """A mark is a pid and a start time: another process under the same pid is a stranger."""
    stranger = subprocess.Popen(["sleep", "60"])
    mark = ProcessMark.of(stranger.pid)
    assert mark is not None
    stale = ProcessMark(mark.pid, mark.started_s - 1)

    assert stale.signal(signal.SIGKILL) is False
    assert stranger.poll() is None

    assert mark.signal(signal.SIGKILL) is True
    stranger.wait(GONE_TIMEOUT_S)
    assert not mark.is_alive()


def test_a_process_that_ignores_the_polite_signal_is_killed() -> None:
    """`end_process` ends it either way, and says which."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    mark = ProcessMark.of(stubborn.pid)
    assert mark is not None

    assert end_process(mark, signal.SIGTERM, timeout_s=0.3) is False

    assert stubborn.wait(GONE_TIMEOUT_S) == -signal.SIGKILL


def test_a_spawned_server_dies_with_a_killed_parent() -> None:
    """The kernel signals it, so that kill -9 of the parent leaves no orphan."""
    script = textwrap.dedent("""
        import pathlib, signal, time
        from synapse_ops.systems.host.processes import spawn
        child = spawn(None, ["sleep", "60"], log_path=pathlib.Path("/dev/null"), die_with_parent=signal.SIGTERM)
        print(child.pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = ProcessMark.of(int(parent.stdout.readline()))
    assert child is not None

    parent.kill()
    parent.wait(GONE_TIMEOUT_S)

    assert child.wait_gone(GONE_TIMEOUT_S)


def test_a_program_that_fails_or_hangs_is_told_by_name() -> None:
    """The error holds the status and the last words, or the time limit."""
    with pytest.raises(ToolFailed, match="sh ended with status 3") as failed:
        run_as(None, ["/bin/sh", "-c", "echo because >&2; exit 3"], timeout_s=5)
    with pytest.raises(DeadlineExceeded, match=r"sleep did not end within 0\.2 s"):
        run_as(None, ["sleep", "5"], timeout_s=0.2)

    assert failed.value.stderr_tail.strip() == "because"


def test_free_ports_are_distinct_and_outside_the_range_of_outgoing_connections() -> None:
    """A port from the kernel's own range may be taken by any outgoing connection before the server starts."""
    ports = free_ports(12)

    assert len(set(ports)) == 12
    assert max(ports) < 65536


@as_root
def test_a_folder_of_mode_0700_is_out_of_reach_of_another_identity(folder: Path) -> None:
    """Every folder above counts; the owner and root's own rights do not help the other identity."""
    identity = server_identity()
    assert isinstance(identity, ServerIdentity)
    inner = folder / "home" / "checkout"
    inner.mkdir(parents=True)
    for place in (folder, folder / "home", inner):
        place.chmod(0o755)
    assert reachable_by(identity, inner)

    (folder / "home").chmod(0o700)

    assert not reachable_by(identity, inner)


@as_root
def test_programs_out_of_reach_are_copied_once_and_run(tmp_path: Path, folder: Path) -> None:
    """A virtual environment under a private home: the server's identity runs a copy."""
    identity = server_identity()
    private = tmp_path / "venv"
    shutil.copytree(find_pg_tools(17).bin_dir.parent, private, symlinks=True)
    private.chmod(0o700)
    original = find_pg_tools(17)
    hidden = type(original)(private / "bin", original.major, original.version)

    copy = tools_for(identity, hidden, folder / "programs")

    assert copy.bin_dir.is_relative_to(folder)
    assert tools_for(identity, hidden, folder / "programs") == copy
    told = run_as(identity, [copy.path("postgres"), "--version"], timeout_s=10, env=copy.environment())
    assert original.version in told.stdout


def test_a_version_that_is_not_installed_is_refused_with_what_was_found() -> None:
    """The message lists every PostgreSQL of the host."""
    with pytest.raises(ConfigError, match="PostgreSQL 9 was not found") as refused:
        find_pg_tools(9)

    assert "PostgreSQL 17" in refused.value.detail


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_stop_a_start(folder: Path) -> None:
    """PostgreSQL refuses while the named pid lives; we know that it does not work in this directory."""
    server = server_in(folder)
    server.init(durable=False)
    (server.data_dir / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data_dir}\n1\n5432\n\n\n  1  1\nready\n")

    assert not server.is_running()
    server.start()

    assert server.is_ready()
    server.stop("immediate")
    assert not server.is_running()


def test_an_interrupted_initdb_leaves_nothing_that_looks_like_a_server(folder: Path) -> None:
    """The data directory appears by a rename at the end; what a kill left is removed by the next init."""
    server = server_in(folder)
    making = server.clear_half_made()
    making.mkdir()
    (making / "PG_VERSION").write_text("17\n")
    assert not server.data_dir.exists()

    server.init(durable=False)

    assert (server.data_dir / "global" / "pg_control").exists()
    assert not making.exists()
    with pytest.raises(ConfigError, match="already exists"):
        server.init()


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    """The server's own last words are in the error, not only in a log."""
    server = server_in(folder)
    server.init(durable=False)
    server.settings = {"shared_buffers": "one gigabyte"}

    with pytest.raises(ToolFailed, match="postgres ended with status 1") as failed:
        server.start()

    assert "shared_buffers" in failed.value.detail


def test_a_killed_postmaster_leaves_no_orphan_after_stop(folder: Path) -> None:
    """An orphaned backend can go on committing; `stop` looks at the directory, not only at the pid file."""
    server = server_in(folder)
    server.init(durable=False)
    server.start()
    mark = server.mark()
    assert mark is not None
    counting = "select count(*) from generate_series(1, 10000000000)"  # never looks whether its postmaster lives
    busy = subprocess.Popen([server.tools.path("psql"), server.conninfo(), "-c", counting])
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        active = "select count(*) from pg_stat_activity where state = 'active' and query = %s"
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while connection.execute(active, [counting]).fetchone() != (1,) and time.monotonic() < deadline:
            time.sleep(0.02)

    mark.signal(signal.SIGKILL)
    server.stop()

    assert processes_in(server.data_dir) == []
    busy.wait(GONE_TIMEOUT_S)
