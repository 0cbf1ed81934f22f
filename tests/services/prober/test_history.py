"""The prober's history under what happens to it: gaps, damage, a full disk, kill -9. Probing goes on."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from synapse_ops.domain.health.states import State
from synapse_ops.errors import IntegrityError
from synapse_ops.operations.health.availability import read_availability
from synapse_ops.operations.health.history import HistoryReader, history_file
from synapse_ops.operations.health.report import read_health
from tests.health_history import WrittenHistory, read_address
from tests.misbehaving import MisbehavingServer, misbehaving
from tests.services.prober.test_watch import entry, prober, states, wait_for, write_spec

H, F, U = State.HEALTHY, State.FAILED, State.UNKNOWN
DAY = timedelta(days=1)
SMALL_FILE = 8192  # bytes: no history fits

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from synapse_ops.domain.health.states import ProbeVerdict, State, initial_condition, next_condition
from synapse_ops.operations.health.history import HistoryWriter, StoredVerdict
from synapse_ops.operations.health.asker import Probe
now = datetime(2026, 11, 23, tzinfo=UTC)
writer = HistoryWriter(Path(sys.argv[1]))
done = int(sys.argv[2])
condition = initial_condition(now)
writer.set_probes([Probe("p", "endpoint", "", 1.0, 1.0, None)], {"p": condition})
while True:
    done += 1
    verdict = ProbeVerdict(State.HEALTHY, "", 0.1, {"number": float(done)})
    after = next_condition(condition, verdict, now)
    writer.store([StoredVerdict("p", now, verdict, condition, after, 1.0)])
    condition = after
    print(done, flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with misbehaving() as running:
        yield running


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, with an empty directory `state`; `fill` takes what is left of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        (disk / "state").mkdir()
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=60)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


def test_a_history_whose_writer_is_killed_in_mid_write_holds_whole_transactions(tmp_path: Path) -> None:
    """Ten kills: the file is sound each time, and what was confirmed before each kill is there."""
    path = tmp_path / "health.sqlite"
    confirmed = 0
    for _ in range(10):
        argv = [sys.executable, "-c", WRITER, str(path), str(confirmed)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(20):
                confirmed = int(process.stdout.readline())
            process.kill()
            lines = process.stdout.read().split("\n")[:-1]  # the last one may be half a number
            confirmed = max([confirmed, *(int(line) for line in lines)])
        with HistoryReader(path) as history:
            [row] = history.probes()
            [span] = history.spans(datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)).values()
        with sqlite3.connect(path) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert confirmed <= row.measurements["number"] <= confirmed + 1
        assert span.verdicts == row.measurements["number"]
        confirmed = int(row.measurements["number"])


def test_a_history_damaged_while_it_is_used_is_set_aside_and_probing_goes_on(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    """A reader says in our words that it is damaged; the prober begins a new one with all its probes."""
    path = history_file(tmp_path)
    with prober(write_spec(tmp_path, [entry("api", server.url("/ok")), entry("bad", server.url("/down"))]), tmp_path):
        wait_for(lambda: states(tmp_path) == {"api": H, "bad": F})
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        for tail in ("-wal", "-shm"):
            with path.with_name(path.name + tail).open("r+b") as file:
                file.write(b"\xff" * 4096)
        wait_for(lambda: path.with_suffix(".damaged").exists() and states(tmp_path) == {"api": H, "bad": F})


def test_a_damaged_history_is_named_to_who_reads_it(tmp_path: Path) -> None:
    """No client's own exception, and nothing that reads like good news."""
    (tmp_path / "watch").mkdir()
    history_file(tmp_path).write_bytes(b"this is no database" * 1000)

    with pytest.raises(IntegrityError, match="is damaged"):
        read_health(tmp_path, datetime.now(UTC))
    with pytest.raises(IntegrityError, match="is damaged"):
        read_availability(tmp_path, datetime.now(UTC) - DAY, datetime.now(UTC))


def test_a_disk_that_is_full_from_the_start_costs_history_and_nothing_else(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    """States are served all the while; with room again the history begins. What was good is never set aside."""
    history = WrittenHistory(tmp_path, ["old"], datetime.now(UTC) - timedelta(hours=2))
    history.add("old", H, H)
    history.close()
    spec = write_spec(tmp_path, [entry("api", server.url("/ok"))])
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL_FILE}, resource.RLIM_INFINITY));"
        "from synapse_ops.services.watch import main; main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", code, "--spec", str(spec), "--state-dir", str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: read_address(tmp_path) is not None)
        url = read_address(tmp_path)["url"]  # type: ignore[index]
        wait_for(lambda: httpx.get(f"{url}/health.json").json()["probes"]["api"]["state"] == "healthy")
        during = states(tmp_path)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_for(lambda: states(tmp_path) == {"api": H})
    finally:
        process.kill()
        process.wait()

    assert "api" not in during
    assert not history_file(tmp_path).with_suffix(".damaged").exists()


def test_a_log_that_cannot_be_written_stops_no_probe(server: MisbehavingServer, tmp_path: Path) -> None:
    """The log may lie on the disk that is full."""
    spec = write_spec(tmp_path, [entry("api", server.url("/ok"))])
    argv = [sys.executable, "-m", "synapse_ops.services.watch", "--spec", str(spec), "--state-dir", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(argv, stdout=full, stderr=full)
    try:
        wait_for(lambda: states(tmp_path) == {"api": H})
        write_spec(tmp_path, [entry("api", server.url("/ok")), entry("new", server.url("/down"))])
        wait_for(lambda: states(tmp_path) == {"api": H, "new": F})
    finally:
        process.kill()
        process.wait()


def test_time_without_a_prober_is_unobserved_and_no_state_spans_it(server: MisbehavingServer, tmp_path: Path) -> None:
    """It was healthy, nobody looked for hours, it is healthy: since now, and the hours are nobody's."""
    url = server.url("/ok")
    start = datetime.now(UTC) - timedelta(hours=6)
    history = WrittenHistory(tmp_path, ["api"], start, targets={"api": url})
    history.add("api", *([H] * 120))  # an hour
    history.close()
    began = datetime.now(UTC)

    with prober(write_spec(tmp_path, [entry("api", url, "20s", "15s")]), tmp_path):  # a busy host answers late
        wait_for(lambda: states(tmp_path) == {"api": H})
        report = read_health(tmp_path, datetime.now(UTC))

    [row] = report.rows
    assert row.condition.since >= began
    assert row.day.uptime_ratio == pytest.approx(1.0)
    assert row.unobserved_ratio == pytest.approx(23 / 24, abs=0.01)
    assert [(found.old, found.new) for found in reversed(report.changes)] == [(U, H), (H, U), (U, H)]
    assert report.changes[1].at - start < timedelta(minutes=62)


def test_a_prober_that_was_stopped_says_that_nobody_looked(server: MisbehavingServer, tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT: the state of before is not carried over the gap."""
    with prober(write_spec(tmp_path, [entry("api", server.url("/ok"))]), tmp_path) as process:
        wait_for(lambda: states(tmp_path) == {"api": H})
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: states(tmp_path) == {"api": U})
        gone_at = time.time()
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: states(tmp_path) == {"api": H})
        report = read_health(tmp_path, datetime.now(UTC))

    [row] = report.rows
    assert row.condition.since.timestamp() >= gone_at - 1
    assert [(found.old, found.new) for found in report.changes[:2]] == [(U, H), (H, U)]


def test_a_disk_that_fills_is_told_though_no_byte_is_left(server: MisbehavingServer, full_disk: Path) -> None:
    """The reserve makes room for the verdict, which is made at once."""
    state = full_disk / "state"
    spec = write_spec(state, [entry("api", server.url("/ok"))], "watch: {servers: [disk]}")
    code = (
        "import sys; from synapse_ops.services.prober import prober; prober.RESERVE_BYTES = 1 << 20;"
        "from synapse_ops.services.watch import main; main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", code, "--spec", str(spec), "--state-dir", str(state)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: states(state) == {"api": H, "server/disk": H})
        assert (state / "watch" / "reserve").exists()
        fill(full_disk)
        wait_for(lambda: states(state).get("server/disk") is F)
    finally:
        process.kill()
        process.wait()

    assert not (state / "watch" / "reserve").exists()


def test_old_verdicts_on_a_full_disk_are_unknown_and_say_why(full_disk: Path) -> None:
    """Where not even the reserve made room, whoever reads the history is told that nothing can be stored."""
    state = full_disk / "state"
    history = WrittenHistory(state, ["api"], datetime.now(UTC) - timedelta(hours=2))
    history.add("api", H, H)
    [before] = read_health(state, datetime.now(UTC)).rows
    fill(full_disk)
    [after] = read_health(state, datetime.now(UTC)).rows
    history.close()

    assert before.condition.state is after.condition.state is U
    assert after.condition.reason == f"{before.condition.reason}; no verdict can be stored: the disk of {state} is full"
