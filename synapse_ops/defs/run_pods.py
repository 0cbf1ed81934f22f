"""What a run's pod gets where each run is a pod: tags that dagster-k8s reads. Elsewhere there are no such tags.

    no tag       what run-launcher.yaml says: the volume of the prober, and the node that it is mounted on
    REPORT       the same with less memory: plans, reports, renderings and deletions
    a disk       any node, and a volume of its own that goes with the pod: backups, proofs and drills

Source: https://docs.dagster.io/deployment/oss/deployment-options/kubernetes/customizing-your-deployment
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.kinds import BASE, DUMP, RDB, SNAPSHOT, Kind
from synapse_ops.services.dagster.run_launcher import LAUNCHER_VARIABLE, read_launcher_file

if TYPE_CHECKING:
    from synapse_ops.spec import Spec

POD_TAG = "dagster-k8s/config"
STATE_VOLUME = "state"


@dataclass(frozen=True)
class RunPod:
    """memory_bytes: requested; twice that is the limit. cpu: requested cores; without a limit.

    disk_bytes: of a volume that goes with the pod; None: the prober's volume, on its node.
    """

    cpu: float
    memory_bytes: int
    disk_bytes: int | None = None
    storage_class: str | None = None


REPORT = RunPod(0.1, 256 << 20)


def data_pod(spec: Spec, *kinds: Kind) -> RunPod:
    """Return the pod of a backup or proof: its disk holds as much as the volumes of what is backed up."""
    storage = spec.kubernetes.storage
    volumes = {DUMP: storage.database, BASE: storage.database, SNAPSHOT: storage.qdrant, RDB: storage.redis}
    return RunPod(0.5, 1 << 30, sum(volumes[kind] for kind in kinds), storage.class_name)


def pod_tags(pod: RunPod) -> dict[str, str]:
    """Return the tags of a job whose runs need such a pod: none where runs are no pods."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    return {POD_TAG: json.dumps(pod_config(pod, _of_every_run(launcher)), sort_keys=True)} if launcher else {}


def pod_config(pod: RunPod, every: Mapping[str, Any]) -> dict[str, Any]:
    """Return what dagster-k8s lays over `run_k8s_config` of run-launcher.yaml, which is `every`.

    dagster-k8s can add to its lists or replace them: a disk of its own takes the place of the prober's volume.
    """
    resources = {
        "requests": {"cpu": f"{pod.cpu * 1000:.0f}m", "memory": str(pod.memory_bytes)},
        "limits": {"memory": str(2 * pod.memory_bytes)},
    }
    if pod.disk_bytes is None:
        return {"container_config": {"resources": resources}}
    claim = {"access_modes": ["ReadWriteOnce"], "resources": {"requests": {"storage": str(pod.disk_bytes)}}}
    if pod.storage_class is not None:
        claim["storage_class_name"] = pod.storage_class
    disk = {"name": STATE_VOLUME, "ephemeral": {"volume_claim_template": {"spec": claim}}}
    mounts = every["container_config"]["volume_mounts"]
    [state] = [mount["mount_path"] for mount in mounts if mount["name"] == STATE_VOLUME]
    return {
        "merge_behavior": "SHALLOW",
        "container_config": {
            "resources": resources,
            # what spares the prober's volume a restored backup is not needed on a disk of its own
            "volume_mounts": [mount for mount in mounts if not mount["mount_path"].startswith(f"{state}/")],
        },
        "pod_spec_config": {
            "affinity": {},
            "volumes": [disk if each["name"] == STATE_VOLUME else each for each in every["pod_spec_config"]["volumes"]],
        },
    }


@cache
def _of_every_run(launcher: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_launcher_file(Path(launcher))["run_k8s_config"]
    return found
