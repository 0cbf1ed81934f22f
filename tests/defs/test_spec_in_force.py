"""Which spec is in force: the file while it is valid, else the last valid one, kept by content."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.errors import ConfigError
from synapse_ops.operations.spec_in_force import compare_with_file, read_spec_in_force
from synapse_ops.services.spec_watch import SpecWatch

VALID = "name: one\n"
INVALID = "name: one\nbackup: {database: {retention: 0d}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "infrastructure.yaml"
    path.write_text(VALID)
    return path


def test_invalid_file_leaves_the_last_valid_spec_in_force(file: Path, tmp_path: Path) -> None:
    """A half-saved file changes nothing, and its fault is told."""
    before = read_spec_in_force(file, tmp_path / "state")
    file.write_text(INVALID)

    after = read_spec_in_force(file, tmp_path / "state")

    assert (before.fault, after.loaded.digest) == (None, before.loaded.digest)
    assert after.fault is not None
    assert "not valid" in compare_with_file(file, after.loaded.digest)


def test_removed_file_leaves_the_last_valid_spec_in_force(file: Path, tmp_path: Path) -> None:
    """An editor that saves by delete and create takes nothing down."""
    before = read_spec_in_force(file, tmp_path / "state")
    file.unlink()

    assert read_spec_in_force(file, tmp_path / "state").loaded.digest == before.loaded.digest


def test_file_that_never_was_valid_is_refused(file: Path, tmp_path: Path) -> None:
    """There is nothing to fall back to, and no default stack is guessed."""
    file.write_text(INVALID)

    with pytest.raises(ConfigError):
        read_spec_in_force(file, tmp_path / "state")


def test_comments_and_spelling_are_no_difference(file: Path, tmp_path: Path) -> None:
    """The digest is of the meaning: a comment neither restarts the code server nor turns the check red."""
    loaded = read_spec_in_force(file, tmp_path / "state").loaded
    file.write_text("# a comment\nname: 'one'\n")

    assert compare_with_file(file, loaded.digest) == ""


def test_run_reads_the_spec_that_is_in_force_when_it_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the spec is in run configuration: a re-execution uses the destination and retention of now."""
    monkeypatch.setenv("SYNAPSE_SPEC", str(file))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path / "state"))
    job = merged_definitions().resolve_job_def("record_spec")
    names = []
    with dg.DagsterInstance.ephemeral() as instance:
        for text in (VALID, "name: another\n", INVALID):
            file.write_text(text)
            result = job.execute_in_process(instance=instance)
            run = instance.get_run_by_id(result.run_id)
            made = instance.get_latest_materialization_event(dg.AssetKey(["spec", "stack"]))
            assert run is not None
            assert made is not None
            assert made.asset_materialization is not None
            assert "resources" not in run.run_config
            names.append(made.asset_materialization.metadata["values"].value["name"])  # type: ignore[index, call-overload]

    assert names == ["one", "another", "another"]
    fields = job.run_config_schema.config_type.fields["resources"].config_type.fields["stack"].config_type.fields  # type: ignore[attr-defined]
    assert list(fields["config"].config_type.fields) == []


def test_spec_is_recorded_when_its_run_succeeded_and_not_when_it_was_asked_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed is asked for again after a pause; one on its way is waited for."""
    monkeypatch.setenv("SYNAPSE_SPEC", str(file))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path / "state"))
    sensor = merged_definitions().resolve_sensor_def("spec_file_sensor")
    cursor: str | None = None

    def requests() -> list[dg.RunRequest]:
        nonlocal cursor
        result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor))
        assert isinstance(result, dg.SensorResult)
        cursor = result.cursor
        return list(result.run_requests or ())

    def run(request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        return instance.add_run(dg.DagsterRun(job_name="record_spec", tags=dict(request.tags), status=status))

    with dg.DagsterInstance.ephemeral() as instance:
        [first] = requests()
        failing = run(first, dg.DagsterRunStatus.STARTED)
        on_its_way = requests()
        instance.report_run_failed(failing, "the disk is full")
        just_failed = requests()
        monkeypatch.setattr("synapse_ops.defs.spec.sensor.RETRY_S", 0.0)
        [again] = requests()
        run(again, dg.DagsterRunStatus.SUCCESS)
        done = [requests(), requests()]

    assert (on_its_way, just_failed, done) == ([], [], [[], []])
    assert json.loads(cursor or "")["recorded"] == again.tags["synapse/spec_digest"]


def test_many_processes_keep_a_new_spec_at_once(file: Path, tmp_path: Path) -> None:
    """Every run and sensor that opens the spec keeps it: none stumbles over the half-written file of another."""
    texts = [f"name: spec{number}\n" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        for text in texts:
            file.write_text(text)
            list(pool.map(lambda _: read_spec_in_force(file, tmp_path / "state"), range(8)))

    assert sorted(path.suffix for path in (tmp_path / "state" / "spec").iterdir()) == ["", *[".yaml"] * 20]


def test_watch_tells_of_a_new_valid_spec_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New values once; an invalid file and a comment never."""
    monkeypatch.setattr("synapse_ops.services.spec_watch._INTERVAL_S", 0.0)
    watch = SpecWatch(file, tmp_path / "state")
    told = [watch.has_new_spec()]
    for text in (INVALID, "# comment\nname: one\n", "name: another\n"):
        file.write_text(text)
        told += [watch.has_new_spec(), watch.has_new_spec()]

    assert told == [False, False, False, False, False, True, False]
