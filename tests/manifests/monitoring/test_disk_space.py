"""Space on disks: probe and alerts judge alike, whatever the size, and no rendered volume fills unseen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops.domain.health.servers import DiskUse, judge_disks
from synapse_ops.domain.health.states import State
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.stack.container_spec import STATE_DIR
from synapse_ops.operations.release.render import write_directory
from tests.manifests.specs import spec_of

GIB = 1 << 30
SIZES = {"the prober's": 2 * GIB, "a store's": 100 * GIB, "large": 4096 * GIB}


def just_above(size: int, state: State) -> int:
    """Return the least free space, in MiB, with which a disk is not judged so badly."""
    states = [State.HEALTHY, State.DEGRADED, State.FAILED]
    low, high = 0, size >> 20
    while low < high:
        middle = (low + high) // 2
        found = judge_disks([DiskUse("/", size, middle << 20, None)]).state
        low, high = (low, middle) if states.index(found) < states.index(state) else (middle + 1, high)
    return low


@pytest.mark.skipif(shutil.which("promtool") is None, reason="not installed: apt-get install prometheus")
def test_an_alert_about_space_fires_where_the_probe_says_so_for_disks_of_every_size(tmp_path: Path) -> None:
    """An empty volume of 2 GiB fired for ever under an absolute limit of 5 GiB, while its probe was content."""
    write_directory(render_bundle(spec_of("default")), tmp_path / "release")
    tests = []
    for size in SIZES.values():
        for alert, state, names, at in (
            ("DiskNearlyFull", State.FAILED, ("synapse_ops_disk_free_bytes", "synapse_ops_disk_size_bytes"), ""),
            ("FileSystemFull", State.FAILED, ("node_filesystem_avail_bytes", "node_filesystem_size_bytes"), "{a='b'}"),
            (
                "FileSystemNearlyFull",
                State.DEGRADED,
                ("node_filesystem_avail_bytes", "node_filesystem_size_bytes"),
                "{a='b'}",
            ),
        ):
            least = just_above(size, state)
            for free, samples in (((least << 20), []), ((least - 1) << 20, [{"labels": "{}", "value": 1}])):
                values = {names[0]: free, names[1]: size}
                series = [{"series": name + at, "values": f"{value}x30"} for name, value in values.items()]
                expr = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
                check = {"expr": expr, "eval_time": "30m", "exp_samples": samples}
                tests.append({"interval": "1m", "input_series": series, "promql_expr_test": [check]})
    rules = str(tmp_path / "release" / "prometheus" / "rules" / "alerts.yml")
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": [rules], "tests": tests}))

    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def mounted_at(pod: dict[str, Any], volume: str) -> dict[str, str]:
    """Return by container where it mounts a volume."""
    return {
        container["name"]: mount["mountPath"]
        for container in pod["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == volume
    }


@pytest.mark.parametrize("name", ["default", "stores in the cluster only", "one node", "long name"])
def test_every_volume_that_is_rendered_is_watched(name: str) -> None:
    """By an exporter beside the store, which Prometheus asks and may ask; the prober looks at its own."""
    bundle = render_bundle(spec_of(name))
    objects = [
        found
        for document in bundle.documents
        if str(document.path).startswith("kubernetes/") and str(document.path).endswith(".yaml")
        for found in yaml.load_all(document.text, yaml.CSafeLoader)
    ]
    jobs = yaml.load(bundle.by_path["prometheus/prometheus.kubernetes.yml"].text, yaml.CSafeLoader)["scrape_configs"]
    asked = {target for job in jobs if job["job_name"] == "node" for target in job["static_configs"][0]["targets"]}
    watched = set()
    for found in objects:
        for claim in found["spec"].get("volumeClaimTemplates", ()) if found["kind"] == "StatefulSet" else ():
            pod, labels = found["spec"]["template"]["spec"], found["spec"]["selector"]["matchLabels"]
            mounts = mounted_at(pod, claim["metadata"]["name"])
            if mounts.get("synapse-ops") == STATE_DIR:
                continue
            [exporter] = [each for each in pod["containers"] if each["name"] == "volume-exporter"]
            assert any(f"mount-points-include=^{mounts['volume-exporter']}$" in each for each in exporter["args"])
            [service] = [
                each["metadata"] for each in objects if each["kind"] == "Service" and each["spec"]["selector"] == labels
            ]
            [policy] = [
                each["spec"]
                for each in objects
                if each["kind"] == "NetworkPolicy" and each["spec"]["podSelector"].get("matchLabels") == labels
            ]
            watched.add(f"{service['name']}.{service['namespace']}.svc:9100")
            assert any({"protocol": "TCP", "port": 9100} in rule["ports"] for rule in policy["ingress"])
    assert watched == asked
    assert watched
