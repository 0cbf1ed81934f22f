"""One dagster.yaml: where the output of runs is kept comes from the environment."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType, ComputeLogManager
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._serdes import ConfigurableClassData

from synapse_ops.errors import ConfigError
from synapse_ops.services.dagster.compute_logs import COMPUTE_LOGS_VARIABLE
from synapse_ops.services.dagster.home import shipped_file
from synapse_ops.systems.s3.store import StoreAccess

KEY = ["run-1", "compute_logs", "step"]


def manager_of_dagster_yaml() -> ComputeLogManager:
    """Return what an instance makes of `compute_logs`."""
    named = yaml.safe_load(shipped_file("dagster.yaml").read_text())["compute_logs"]
    return ConfigurableClassData(named["module"], named["class"], "{}").rehydrate(as_type=ComputeLogManager)


def test_without_the_variable_output_is_where_dagster_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(COMPUTE_LOGS_VARIABLE, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    manager = manager_of_dagster_yaml()

    assert isinstance(manager, LocalComputeLogManager)
    assert Path(manager.get_captured_local_path(KEY, "out")).is_relative_to(tmp_path / "storage")


def test_with_it_another_process_reads_what_a_run_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: str, object_store_access: StoreAccess
) -> None:
    """A real store, reached by boto3's own variables; the second manager has none of the first one's files."""
    credentials = tmp_path / "credentials"
    access = object_store_access
    credentials.write_text(
        f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    )
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # of this process, which may have looked for keys before
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(access.endpoint))
    monkeypatch.setenv("AWS_REGION", access.region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", access.region)
    monkeypatch.setenv(COMPUTE_LOGS_VARIABLE, f"{bucket}compute-logs/")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    run_id = uuid.uuid4().hex
    key = [run_id, "compute_logs", "step"]
    written: Any = manager_of_dagster_yaml()
    with written.open_log_stream(key, ComputeIOType.STDERR) as stream:
        assert stream is not None
        stream.write("what the run said\n")
    Path(written.local_manager.get_captured_local_path(key, "err")).unlink(missing_ok=True)  # it went with the pod

    read = manager_of_dagster_yaml().get_log_data(key)

    assert read.stderr == b"what the run said\n"
    written.delete_logs(prefix=[run_id])
    assert not written.cloud_storage_has_logs(key, ComputeIOType.STDERR)


@pytest.mark.parametrize("url", ["backups/logs", "s3://", "s3://backups", "s3://backups/", "https://backups/logs"])
def test_a_url_without_bucket_and_prefix_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    monkeypatch.setenv(COMPUTE_LOGS_VARIABLE, url)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    with pytest.raises(ConfigError, match=COMPUTE_LOGS_VARIABLE) as error:
        manager_of_dagster_yaml()

    assert repr(url) in str(error.value)
