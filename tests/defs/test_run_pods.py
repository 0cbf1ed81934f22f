"""What a run's pod gets, as dagster-k8s makes it of run-launcher.yaml and the tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.run_pods import POD_TAG
from synapse_ops.services.dagster.run_launcher import LAUNCHER_VARIABLE, launcher_config

SHIPPED = Path(__file__).parents[2] / "deploy" / "kubernetes" / "run-launcher.yaml"
SPEC = "name: shop\nkubernetes: {storage: {database: 7Gi, qdrant: 3Gi, class_name: fast}}\nbackup: {redis: {}}\n"


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "infrastructure.yaml"
    path.write_text(SPEC)
    monkeypatch.setenv("SYNAPSE_SPEC", str(path))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SYNAPSE_EMBEDDED", raising=False)


def tags_of_jobs() -> dict[str, dict[str, str]]:
    return {job.name: dict(job.tags) for job in merged_definitions().get_repository_def().get_all_jobs()}


def pod_of(tags: dict[str, str]) -> dict[str, Any]:
    """Return the pod of a run with these tags, as it is sent to Kubernetes."""
    config = launcher_config(SHIPPED)
    base = K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config["run_k8s_config"]))
    over = UserDefinedDagsterK8sConfig.from_dict(json.loads(tags.get(POD_TAG, "{}")))
    made = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="synapse-ops:0.1.0", dagster_home=config["dagster_home"]),
        args=["dagster"],
        job_name="run",
        user_defined_k8s_config=base.merge(K8sContainerContext(run_k8s_config=over)).run_k8s_config,
    )
    found: dict[str, Any] = ApiClient().sanitize_for_serialization(made)["spec"]["template"]["spec"]
    return found


@pytest.mark.usefixtures("spec")
def test_no_run_has_tags_of_pods_where_runs_are_no_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)

    assert not [name for name, tags in tags_of_jobs().items() if POD_TAG in tags]


@pytest.mark.usefixtures("spec")
def test_what_moves_data_has_a_disk_of_its_own_and_what_reports_has_the_prober_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All jobs: the disk of a backup and its proof is as large as the volume of what is backed up."""
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(SHIPPED))

    disks, beside, memory = {}, [], {}
    for name, tags in tags_of_jobs().items():
        pod = pod_of(tags)
        [state] = [volume for volume in pod["volumes"] if volume["name"] == "state"]
        memory[name] = pod["containers"][0]["resources"]["requests"]["memory"]
        if "ephemeral" in state:
            claim = state["ephemeral"]["volumeClaimTemplate"]["spec"]
            assert (claim["storageClassName"], claim["accessModes"]) == ("fast", ["ReadWriteOnce"])
            assert not pod["affinity"], name
            disks[name] = int(claim["resources"]["requests"]["storage"]) >> 30
        else:
            assert state["persistentVolumeClaim"] == {"claimName": "state-synapse-synapse-ops-0"}
            assert "podAffinity" in pod["affinity"], name
            beside.append(name)
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert (
            set(mounts.values()) == {each["name"] for each in pod["volumes"]} == {"state", "spec", "secrets", "scratch"}
        )
        assert mounts.get("/var/lib/synapse-ops/proof") == (None if "ephemeral" in state else "scratch"), name

    assert disks == {
        "backup_database": 7,
        "prove_database": 7,
        "backup_cluster": 7,
        "prove_cluster": 7,
        "backup_vectors": 3,
        "prove_vectors": 3,
        "backup_redis": 10,
        "prove_redis": 10,
        "drill_failover": 10,
        "drill_recovery": 20,
    }
    assert {"report_health", "render_manifests", "restore", "__ASSET_JOB"} <= set(beside)
    assert (memory["report_health"], memory["restore"], memory["prove_database"]) == (
        "268435456",
        "512Mi",
        "1073741824",
    )
