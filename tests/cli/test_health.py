"""`health` on real endpoints: with and without a prober, as a table and as JSON, with the exit code that says it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest

from synapse_ops.cli.main import main
from synapse_ops.domain.health.states import State
from synapse_ops.operations.health.history import history_file
from tests.health_history import WrittenHistory, watched
from tests.misbehaving import MisbehavingServer, misbehaving

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json" / "health.schema.json").read_text())
H, D, F = State.HEALTHY, State.DEGRADED, State.FAILED


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with misbehaving() as running:
        yield running


def health(folder: Path, *options: str) -> int:
    arguments = ["health", "--state-dir", str(folder), "--spec", str(folder / "infrastructure.yaml"), *options]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def write_spec(folder: Path, **urls: str) -> None:
    entries = ", ".join(f"{{name: {name}, url: '{url}', timeout: 20s}}" for name, url in urls.items())
    (folder / "infrastructure.yaml").write_text(f"watch: {{servers: []}}\nhealth: [{entries}]\n")


def test_without_a_prober_everything_is_asked_once_and_the_answer_says_so(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0: all is healthy. Nothing is written into the state directory."""
    write_spec(tmp_path, api=server.url("/ok"))

    assert health(tmp_path) == 0
    output = capsys.readouterr().out
    assert "1 of 1 healthy" in output
    assert "no prober is running" in output
    assert not (tmp_path / "watch").exists()


def test_anything_that_is_not_healthy_is_exit_code_17(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data on stdout, valid by the schema; the error on stderr names what and why."""
    write_spec(tmp_path, good=server.url("/ok"), bad=server.url("/error-body"))

    assert health(tmp_path, "--json") == 17
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    jsonschema.validate(document, SCHEMA)
    assert {row["name"]: row["state"] for row in document["probes"]} == {"good": "healthy", "bad": "failed"}
    assert document["worst"] == "failed"
    error = json.loads(captured.err)["error"]
    assert error["code"] == "Unhealthy"
    assert 'bad: answered 200 with "error" in the body' in error["detail"]


def test_with_a_prober_its_history_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """State, since, reason, latency and the last day; degraded is no success, either."""
    write_spec(tmp_path, api="http://127.0.0.1:9/")
    now = datetime.now(UTC)
    history = WrittenHistory(tmp_path, ["api"], now - timedelta(minutes=2))
    history.add("api", H, H, D, D, reason="it is slow")

    with watched(tmp_path):
        assert health(tmp_path) == 17
        table = capsys.readouterr().out
        assert health(tmp_path, "--json") == 17
        document = json.loads(capsys.readouterr().out)

    jsonschema.validate(document, SCHEMA)
    assert document["is_watched"] is True
    assert "degraded" in table
    assert "it is slow" in table
    assert "100.00%" in table
    assert document["changes"][0]["new"] == "degraded"


def test_what_nobody_knows_is_exit_code_14(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One probe whose verdict is overdue: unknown is never a pass."""
    write_spec(tmp_path, api="http://127.0.0.1:9/", other="http://127.0.0.1:9/")
    now = datetime.now(UTC)
    history = WrittenHistory(tmp_path, ["api", "other"], now - timedelta(hours=1))
    history.add("api", H, H)
    history.add("other", *[H] * 120)

    with watched(tmp_path):
        assert health(tmp_path) == 14
    assert "no verdict since" in capsys.readouterr().out


def test_a_prober_that_stores_nothing_is_not_believed_and_everything_is_asked_once(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It hangs, or its disk is full: then it knows more than its history. What fails now is told; and it is no pass."""
    history = WrittenHistory(tmp_path, ["api"], datetime.now(UTC) - timedelta(hours=1))
    history.add("api", H, H)

    with watched(tmp_path):
        write_spec(tmp_path, api=server.url("/error-body"))
        assert health(tmp_path) == 17
        assert 'answered 200 with "error" in the body' in capsys.readouterr().out
        write_spec(tmp_path, api=server.url("/ok"))
        assert health(tmp_path) == 14
        assert "a prober runs, but it has stored nothing for longer than was due" in capsys.readouterr().out
        history_file(tmp_path).unlink()
        assert health(tmp_path) == 14
