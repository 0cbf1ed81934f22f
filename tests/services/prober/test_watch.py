"""The prober as a process: in time beside whatever hangs, alone in its state directory, and gone at once when told."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from synapse_ops.domain.health.states import State
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.health.history import history_file
from synapse_ops.operations.health.report import is_watched, read_health
from tests.health_history import read_address
from tests.misbehaving import MisbehavingServer, misbehaving

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0  # what hangs does so for an hour
TIMEOUT_S = 1.0
ENDPOINTS, HANGING, ROUNDS = 200, 20, 2
WAIT_S = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with misbehaving() as running:
        yield running


def wait_for(condition: Callable[[], object], timeout_s: float = WAIT_S, poll_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(poll_s)


def write_spec(folder: Path, entries: list[dict[str, str]], more: str = "watch: {servers: []}") -> Path:
    path = folder / "infrastructure.yaml"
    making = folder / "making.yaml"
    making.write_text(f"name: watched\n{more}\nhealth: {json.dumps(entries)}\n")
    making.replace(path)
    return path


def entry(name: str, url: str, interval: str = "1s", timeout: str = f"{TIMEOUT_S:g}s") -> dict[str, str]:
    return {"name": name, "url": url, "interval": interval, "timeout": timeout}


@contextmanager
def prober(spec: Path, state_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "synapse_ops.services.watch", "--spec", str(spec), "--state-dir", str(state_dir)]
    with (state_dir / "watch.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        wait_for(lambda: read_address(state_dir) is not None or process.poll() is not None)
        assert process.poll() is None, (state_dir / "watch.log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def states(state_dir: Path) -> dict[str, State]:
    """Return the state of each probe; empty until the prober has written its first."""
    try:
        return {row.probe.name: row.condition.state for row in read_health(state_dir, datetime.now(UTC)).rows}
    except SynapseOpsError:
        return {}


def metrics(state_dir: Path) -> dict[str, dict[str, float]]:
    """Return each metric's values by probe, as Prometheus reads them."""
    address = read_address(state_dir)
    assert address is not None
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{address['url']}/metrics", timeout=10).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("probe", "")] = sample.value
    return found


@pytest.mark.scenario
def test_twenty_of_two_hundred_that_hang_delay_nobody(server: MisbehavingServer, tmp_path: Path) -> None:
    """Each of the 180 others gets its verdict and is asked again, while ten hang for good and ten for their timeout.

    How late a verdict is depends on the host: `python -m benchmarks.probes`.
    """
    others = {f"e{number}": f"/ok-{number}" for number in range(ENDPOINTS - HANGING)}
    late, stuck = ([f"{kind}{number}" for number in range(HANGING // 2)] for kind in ("late", "stuck"))
    spec = write_spec(
        tmp_path,
        [{"name": name, "url": server.url(path), "interval": "6s", "timeout": "6s"} for name, path in others.items()]
        + [entry(name, server.url("/hang"), "6s") for name in late]
        + [{"name": name, "url": server.url("/hang"), "interval": "1h", "timeout": "1h"} for name in stuck],
    )
    found: dict[str, set[State]] = {name: set() for name in (*others, *late, *stuck)}

    def all_have_their_verdicts() -> bool:
        for name, state in states(tmp_path).items():
            found[name].add(state)
        answered = all(found[name] & {State.HEALTHY, State.DEGRADED} for name in others)
        return answered and all(State.FAILED in found[name] for name in late)

    with prober(spec, tmp_path):
        wait_for(all_have_their_verdicts, poll_s=0.5)
        wait_for(lambda: all(server.asked.get(path, 0) >= ROUNDS for path in others.values()))
        delays = metrics(tmp_path)["synapse_ops_probe_verdict_delay_seconds"]

    assert all(found[name] == {State.UNKNOWN} for name in stuck)
    assert delays.keys() == {*others, *late}


def test_a_second_prober_of_a_state_directory_is_refused(server: MisbehavingServer, tmp_path: Path) -> None:
    """One writer of one history; the second says who is in its way."""
    spec = write_spec(tmp_path, [entry("api", server.url("/ok"))])
    with prober(spec, tmp_path):
        argv = [sys.executable, "-m", "synapse_ops.services.watch", "--spec", str(spec), "--state-dir", str(tmp_path)]
        second = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert second.returncode == 10
    assert "another prober watches" in second.stderr


def test_sigterm_ends_it_at_once_while_questions_hang(server: MisbehavingServer, tmp_path: Path) -> None:
    """It waits for nobody, takes its address away, and its verdicts are kept."""
    entries = [{"name": "hangs", "url": server.url("/hang"), "interval": "1h", "timeout": "1h"}]
    entries.append(entry("api", server.url("/ok")))
    with prober(write_spec(tmp_path, entries), tmp_path) as process:
        wait_for(lambda: states(tmp_path).get("api") is State.HEALTHY)
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_TIMEOUT_S)

    assert status == 0
    assert not is_watched(tmp_path)
    assert not (tmp_path / "watch" / "address.json").exists()
    assert states(tmp_path)["api"] is State.HEALTHY


@pytest.mark.parametrize("part", ["_beat", "_keep", "_look_at_repository", "_ask_for_ever", "metrics server"])
def test_a_part_that_ends_by_itself_ends_the_prober_with_its_error(
    server: MisbehavingServer, tmp_path: Path, part: str
) -> None:
    """A prober that is half dead would look alive; what supervises it starts it again, because the status is 1."""
    code = f"""
import sys
from synapse_ops.services import watch
from synapse_ops.services.prober import prober
async def end(*arguments, **named):
    raise MemoryError("it cannot go on")
class Server:
    serve = end
if {part!r} == "metrics server":
    watch._metrics_server = lambda *arguments: Server()
else:
    prober.Prober.{part.replace(" ", "_")} = end
watch.main(sys.argv[1:])
"""
    spec = write_spec(tmp_path, [entry("api", server.url("/ok"))])

    argv = [sys.executable, "-c", code, "--spec", str(spec), "--state-dir", str(tmp_path)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert ended.returncode == 1
    assert "it cannot go on" in ended.stderr
    assert read_address(tmp_path) is None
    assert not (tmp_path / "watch" / "address.json").exists()


@pytest.mark.scenario
def test_a_look_at_the_repository_that_no_process_can_be_made_for_is_made_again(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    """200 probes that hang hold descriptors: without one to spare the prober goes on, and looks again later."""
    store = f'object_store: {{endpoint: "http://127.0.0.1:{server.port}", credentials: "env:NOT_SET_ANYWHERE"}}'
    more = f"{store}\nwatch: {{servers: [], repository_interval: 1s}}"
    with prober(write_spec(tmp_path, [entry("api", server.url("/ok"))], more), tmp_path) as process:
        wait_for(lambda: states(tmp_path).get("api") is State.HEALTHY)
        url = read_address(tmp_path)["url"]  # type: ignore[index]
        assert httpx.get(f"{url}/healthz", timeout=WAIT_S).text == "ok\n"  # all that is imported late is loaded
        most, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(
            process.pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{process.pid}/fd").iterdir())), hard)
        )
        wait_for(lambda: "the repository could not be read" in (tmp_path / "watch.log").read_text())
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most, hard))
        wait_for(lambda: httpx.get(f"{url}/health.json", timeout=WAIT_S).json()["protection"])
        assert process.poll() is None


def test_a_new_valid_spec_is_taken_and_a_broken_one_changes_nothing(server: MisbehavingServer, tmp_path: Path) -> None:
    """What stays keeps its state; what went is shown no more."""
    spec = write_spec(tmp_path, [entry("kept", server.url("/ok")), entry("gone", server.url("/ok"))])
    with prober(spec, tmp_path) as process:
        wait_for(lambda: states(tmp_path) == {"kept": State.HEALTHY, "gone": State.HEALTHY})
        since = {row.probe.name: row.condition.since for row in read_health(tmp_path, datetime.now(UTC)).rows}
        spec.write_text("health: [{name: kept,\n")
        wait_for(lambda: "not valid" in (tmp_path / "watch.log").read_text())
        during = set(states(tmp_path))
        write_spec(tmp_path, [entry("kept", server.url("/ok")), entry("new", server.url("/down"))])
        wait_for(lambda: states(tmp_path) == {"kept": State.HEALTHY, "new": State.FAILED})
        rows = {row.probe.name: row for row in read_health(tmp_path, datetime.now(UTC)).rows}
        assert process.poll() is None

    assert during == {"kept", "gone"}
    assert rows["kept"].condition.since == since["kept"]


def test_every_probed_system_may_be_absent(tmp_path: Path) -> None:
    """The default servers, none of which is there: each failed with its reason, and the prober lives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        more = f"""
database: {{host: 127.0.0.1, port: {port}, admin: "env:NOT_SET_ANYWHERE"}}
redis: {{host: 127.0.0.2, port: {port}}}
qdrant: {{nodes: ["http://127.0.0.3:{port}"]}}
object_store: {{endpoint: "http://127.0.0.4:{port}", credentials: "env:NOT_SET_ANYWHERE"}}
watch: {{interval: 2s, timeout: 2s, store_interval: 2s}}"""
        spec = write_spec(tmp_path, [entry("api", f"http://127.0.0.1:{port}/")], more)
        with prober(spec, tmp_path) as process:
            wait_for(lambda: list(states(tmp_path).values()).count(State.FAILED) >= 8)
            rows = {row.probe.name: row for row in read_health(tmp_path, datetime.now(UTC)).rows}
            assert process.poll() is None

    bad = {name for name, row in rows.items() if row.condition.state is State.FAILED}
    assert {"api", "server/db-primary", "server/db-standby", "server/replication", "server/redis"} <= bad
    assert {"server/qdrant", "server/object-store", "server/certificates"} <= bad
    assert all(row.condition.reason for name, row in rows.items() if name in bad)
    assert "NOT_SET_ANYWHERE" in rows["server/db-primary"].condition.reason


def test_a_killed_probers_good_news_is_not_believed_for_long(server: MisbehavingServer, tmp_path: Path) -> None:
    """Its last verdicts read as unknown once the next ones are overdue, and its successor goes on from its states."""
    spec = write_spec(tmp_path, [entry("api", server.url("/ok"), "20s")])  # the successor is there before it is overdue
    with prober(spec, tmp_path) as process:
        wait_for(lambda: states(tmp_path).get("api") is State.HEALTHY)
        process.kill()
        process.wait()
    later = datetime.fromtimestamp(time.time() + 60, UTC)
    [row] = read_health(tmp_path, later).rows
    assert row.condition.state is State.UNKNOWN
    with prober(spec, tmp_path):
        wait_for(lambda: states(tmp_path).get("api") is State.HEALTHY)
        [after] = read_health(tmp_path, datetime.now(UTC)).rows

    assert after.condition.since < datetime.fromtimestamp(later.timestamp() - 60, UTC)


def test_a_damaged_history_is_set_aside(server: MisbehavingServer, tmp_path: Path) -> None:
    """History may be lost, probing may not stop."""
    (tmp_path / "watch").mkdir()
    history_file(tmp_path).write_bytes(b"this is no database" * 1000)

    with prober(write_spec(tmp_path, [entry("api", server.url("/ok"))]), tmp_path):
        wait_for(lambda: states(tmp_path).get("api") is State.HEALTHY)

    assert history_file(tmp_path).with_suffix(".damaged").exists()


def test_metrics_are_for_this_host_alone(server: MisbehavingServer, tmp_path: Path) -> None:
    """A web page that points its own name here is refused, and nothing can be changed."""
    with prober(write_spec(tmp_path, [entry("api", server.url("/ok"))]), tmp_path):
        address = read_address(tmp_path)
        assert address is not None
        url = address["url"]
        assert httpx.get(f"{url}/healthz").text == "ok\n"
        assert httpx.get(f"{url}/metrics", headers={"Host": "evil.example"}).status_code == 421
        for name in ("synapse-ops:9109", "Synapse-Ops:9109", "localhost:9109"):
            assert httpx.get(f"{url}/metrics", headers={"Host": name}).status_code == 200
        for name in ("synapse-ops", "synapse-ops:9110", "synapse-ops.evil.example:9109"):
            assert httpx.get(f"{url}/metrics", headers={"Host": name}).status_code == 421
        assert httpx.post(f"{url}/metrics").status_code == 405
        assert httpx.get(f"{url}/nothing").status_code == 404
        wait_for(lambda: httpx.get(f"{url}/health.json").json()["probes"]["api"]["state"] == "healthy")


def test_the_prober_imports_no_dagster(tmp_path: Path) -> None:
    """It works while Dagster is down or being upgraded, and costs a fraction of its memory."""
    code = (
        "import sys, synapse_ops.services.watch, synapse_ops.services.prober.metrics, httpx, psycopg, redis.asyncio;"
        "print([name for name in sys.modules if name.split('.')[0] in ('dagster', 'boto3', 'sqlalchemy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=dict(os.environ)
    )

    assert done.stdout.strip() == "[]"
