"""Autoscaler, budgets, policies, Services and a rollout that fails do on real controllers what the spec says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.applied import Applied, rendered
from tests.cluster.conftest import ApplySpec
from tests.cluster.control_plane import ControlPlane, Object

pytestmark = pytest.mark.cluster

SETTLED_TIMEOUT_S = 60.0
QUICK = {"updates": {"timeout": "4s"}}  # pods count as available after 3 s, and a rollout has failed after 4 s
METRICS = "apis/metrics.k8s.io/v1beta1"


@pytest.fixture(scope="module")
def metrics_of_pods(control_plane: ControlPlane) -> None:
    """Serve `metrics.k8s.io` from objects that tests write: what the autoscaler reads."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {"plural": "pods", "kind": "PodMetrics", "listKind": "PodMetricsList"}
    control_plane.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": "pods.metrics.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
            },
            "spec": {
                "group": "metrics.k8s.io",
                "scope": "Namespaced",
                "names": names,
                "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": schema}],
            },
        }
    )
    control_plane.when(f"/{METRICS}/pods", lambda found: "items" in found)


def test_the_autoscaler_is_the_one_of_the_spec(apply_spec: ApplySpec) -> None:
    """The API server's own reading: 70 % of what is requested, 2 to 10 pods, 5 minutes of calm before fewer."""
    applied = apply_spec("default", {})

    held = applied.plane.api.get(applied.path("HorizontalPodAutoscaler", "api")).json()["spec"]

    resource = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    assert held["metrics"] == [{"type": "Resource", "resource": resource}]
    assert (held["minReplicas"], held["maxReplicas"]) == (2, 10)
    assert held["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert held["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0


@pytest.mark.usefixtures("metrics_of_pods")
def test_the_autoscaler_follows_the_load_between_its_limits_and_an_apply_leaves_its_decision(
    apply_spec: ApplySpec,
) -> None:
    """The load of every pod is told, and what the real autoscaler makes of it is read."""
    autoscaling = {"min_replicas": 2, "max_replicas": 5, "target_cpu_utilization": 70}
    applied = apply_spec("scaled", QUICK | {"autoscaling": autoscaling})
    deployment = applied.path("Deployment", "api")
    applied.await_available()
    assert len(applied.pods("api")) == 2

    _tell_load(applied, 0.69)
    autoscaler = applied.plane.when(
        applied.path("HorizontalPodAutoscaler", "api"), _has_read, timeout_s=SETTLED_TIMEOUT_S
    )
    assert autoscaler["status"]["desiredReplicas"] == 2, "69 % is not above 70 %"

    _tell_load(applied, 1.40)
    applied.plane.when(deployment, lambda found: found["spec"]["replicas"] == 4, timeout_s=SETTLED_TIMEOUT_S)
    applied.apply()
    assert applied.plane.api.get(deployment).json()["spec"]["replicas"] == 4

    applied.plane.when(deployment, lambda found: found["status"].get("readyReplicas") == 4, timeout_s=SETTLED_TIMEOUT_S)
    _tell_load(applied, 0.05)
    autoscaler = applied.plane.when(
        applied.path("HorizontalPodAutoscaler", "api"),
        lambda found: _condition(found, "AbleToScale").get("reason") == "ScaleDownStabilized",
        timeout_s=SETTLED_TIMEOUT_S,
    )
    assert autoscaler["status"]["desiredReplicas"] == 4, "five minutes of calm have not passed"


@pytest.mark.parametrize("part", ["api", "worker"])
def test_a_second_eviction_is_refused_until_the_first_pod_is_replaced(apply_spec: ApplySpec, part: str) -> None:
    """A drain of two nodes at once takes one pod at a time: 429, and the second pod stays."""
    applied = apply_spec(f"evicted {part}", QUICK)
    applied.await_available()
    budget = applied.path("PodDisruptionBudget", part)
    applied.plane.when(budget, lambda found: found.get("status", {}).get("disruptionsAllowed") == 1)
    first, second = applied.pods(part)
    applied.kubectl("create", "quota", "no-pods", "--hard=pods=0")  # so that the first is not replaced

    answers = [_evict(applied, pod) for pod in (first, second)]

    assert answers == [201, 429]
    assert [pod["metadata"]["name"] for pod in applied.pods(part)] == [second["metadata"]["name"]]
    applied.kubectl("delete", "quota", "no-pods")
    applied.plane.when(budget, lambda found: found["status"]["disruptionsAllowed"] == 1, timeout_s=SETTLED_TIMEOUT_S)
    assert _evict(applied, second) == 201


def test_a_part_of_one_pod_can_be_drained(apply_spec: ApplySpec) -> None:
    """A budget that keeps the only pod of a server would make its node undrainable for ever."""
    applied = apply_spec("evicted store", QUICK)
    applied.await_available()
    applied.plane.when(
        applied.path("PodDisruptionBudget", "redis"), lambda found: found["status"]["disruptionsAllowed"] == 1
    )
    [pod] = applied.pods("redis")

    assert _evict(applied, pod) == 201


def test_every_pod_is_denied_everything_but_what_one_policy_of_its_part_allows(apply_spec: ApplySpec) -> None:
    """Selectors find the real pods: an empty one all, each other one those of one part. Nothing enforces them here."""
    applied = apply_spec("default", {})
    applied.await_available()

    held = [each for each in applied.objects().values() if each["kind"] == "NetworkPolicy"]
    for_all = [each["spec"] for each in held if not each["spec"]["podSelector"]]
    found = {
        each["metadata"]["name"]: _parts_of(applied, each["spec"]["podSelector"]["matchLabels"])
        for each in held
        if each["spec"]["podSelector"]
    }

    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in for_all
    assert all(len(parts) == 1 for parts in found.values()), found
    assert set.union(*found.values()) == _parts_of(applied, {})
    assert len(found) == len(set.union(*found.values()))


def test_every_service_leads_to_the_pods_of_its_part(apply_spec: ApplySpec) -> None:
    """The endpoints that the real controller makes: an address for each pod, and a number for each port's name."""
    applied = apply_spec("default", {})
    applied.await_available()

    wrong = {}
    for service in (each for each in applied.documents if each["kind"] == "Service"):
        name, part = service["metadata"]["name"], service["metadata"]["labels"]["app.kubernetes.io/name"]
        endpoints = applied.plane.api.get(
            f"/apis/discovery.k8s.io/v1/namespaces/{applied.namespace}/endpointslices",
            params={"labelSelector": f"kubernetes.io/service-name={name}"},
        ).json()["items"]
        addresses = {each["addresses"][0] for found in endpoints for each in found["endpoints"] or ()}
        ports = {port["name"] for found in endpoints for port in found["ports"] or ()}
        expected = {pod["status"]["podIP"] for pod in applied.pods(part)}
        if addresses != expected or (expected and ports != {port["name"] for port in service["spec"]["ports"]}):
            wrong[name] = (addresses, expected, ports)

    assert not wrong


def test_a_rollout_of_an_image_that_cannot_be_pulled_fails_in_time_and_the_old_pods_stay(
    apply_spec: ApplySpec, control_plane: ControlPlane, tmp_path: Path
) -> None:
    """`updates.timeout` is the deadline; meanwhile the release before serves, and applying it again is the way back."""
    applied = apply_spec("bad image", QUICK)
    applied.await_available()
    deployment = applied.path("Deployment", "api")
    bad = rendered(control_plane, tmp_path, "bad image", QUICK | {"kubernetes": {"image": "synapse-api:bad"}})

    bad.apply()

    failed = control_plane.when(
        deployment, lambda found: _condition(found, "Progressing")["status"] == "False", timeout_s=SETTLED_TIMEOUT_S
    )
    assert _condition(failed, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert _condition(failed, "Available")["status"] == "True"
    ready = [pod for pod in applied.pods("api") if _condition(pod, "Ready").get("status") == "True"]
    images = {pod["spec"]["containers"][0]["image"] for pod in ready}
    assert (len(ready), images) == (1, {"synapse-api:latest"}), "one of two may be down at once"

    applied.apply()

    control_plane.when(
        deployment,
        lambda found: (
            _condition(found, "Progressing").get("reason") == "NewReplicaSetAvailable"
            and found["status"].get("availableReplicas") == 2
        ),
        timeout_s=SETTLED_TIMEOUT_S,
    )


def _tell_load(applied: Applied, share: float) -> None:
    """Write for each pod of the API that it uses this share of the CPU that it requests."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    applied.plane.apply(
        *(
            {
                "apiVersion": "metrics.k8s.io/v1beta1",
                "kind": "PodMetrics",
                "metadata": {
                    "name": pod["metadata"]["name"],
                    "namespace": applied.namespace,
                    "labels": pod["metadata"]["labels"],
                },
                "timestamp": now,
                "window": "1s",
                "containers": [
                    {"name": each["name"], "usage": {"cpu": f"{_millicores(each) * share:.0f}m", "memory": "1Mi"}}
                    for each in pod["spec"]["containers"]
                ],
            }
            for pod in applied.pods("api")
        )
    )


def _millicores(container: Mapping[str, Any]) -> int:
    return int(container["resources"]["requests"]["cpu"].removesuffix("m"))


def _has_read(autoscaler: Object) -> bool:
    return _condition(autoscaler, "ScalingActive").get("status") == "True" and "desiredReplicas" in autoscaler["status"]


def _condition(found: Object, kind: str) -> Object:
    return next((each for each in found.get("status", {}).get("conditions", ()) if each["type"] == kind), {})


def _evict(applied: Applied, pod: Object) -> int:
    metadata = {"name": pod["metadata"]["name"], "namespace": applied.namespace}
    path = f"/api/v1/namespaces/{applied.namespace}/pods/{metadata['name']}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    return applied.plane.api.post(path, json=body).status_code


def _parts_of(applied: Applied, labels: Mapping[str, str]) -> set[str]:
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    found = applied.plane.api.get(f"/api/v1/namespaces/{applied.namespace}/pods", params={"labelSelector": selector})
    return {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in found.json()["items"]}
