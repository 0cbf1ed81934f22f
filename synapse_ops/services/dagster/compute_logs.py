"""Where the output of runs is kept: below DAGSTER_HOME, or in S3 where a run's disk goes with its pod (dagster-aws).

dagster.yaml is the same in every place: SYNAPSE_COMPUTE_LOGS is s3://BUCKET/PREFIX, or absent. boto3's own variables
name the rest: AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_SHARED_CREDENTIALS_FILE, AWS_CA_BUNDLE.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dagster._core.instance.ref import compute_logs_directory
from dagster._core.storage.compute_log_manager import ComputeLogManager
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from dagster._serdes import ConfigurableClassData

COMPUTE_LOGS_VARIABLE = "SYNAPSE_COMPUTE_LOGS"
_UPLOAD_INTERVAL_S = 30  # what a pod that is killed has written until then can be read


class PlaceComputeLogManager(LocalComputeLogManager):
    """LocalComputeLogManager, or S3ComputeLogManager where SYNAPSE_COMPUTE_LOGS names its bucket and prefix."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # it may be a manager of another class
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> ComputeLogManager:
        named = os.environ.get(COMPUTE_LOGS_VARIABLE)
        base_dir = compute_logs_directory(os.environ["DAGSTER_HOME"])  # Dagster's own default
        return stored_logs(named, inst_data) if named else cls(base_dir, inst_data=inst_data)


def stored_logs(url: str, inst_data: ConfigurableClassData | None = None) -> ComputeLogManager:
    """Return the manager that keeps output below an s3:// URL. Raises ConfigError without a bucket or prefix."""
    address = urlsplit(url)
    prefix = address.path.strip("/")
    if address.scheme != "s3" or not address.netloc or not prefix:
        raise ConfigError(
            f"{COMPUTE_LOGS_VARIABLE} is {url!r}", hint="It is a bucket and a prefix: s3://backups/compute-logs"
        )
    try:
        from dagster_aws.s3 import S3ComputeLogManager
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{COMPUTE_LOGS_VARIABLE} asks for logs in S3, and {missing.name} is not installed",
            hint="Install synapse-ops[aws]; the image of deploy/Dockerfile has it.",
        ) from None
    return S3ComputeLogManager(
        bucket=address.netloc,
        prefix=prefix,
        skip_empty_files=True,
        upload_interval=_UPLOAD_INTERVAL_S,
        inst_data=inst_data,
    )
