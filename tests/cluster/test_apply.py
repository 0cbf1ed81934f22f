"""What is rendered is applied to a real API server, by server-side apply in the rendered order, and becomes available.

The namespace that is rendered enforces the Pod Security Standard `restricted`. Whether a container starts is not judged
here: the nodes run nothing (control_plane.py).
"""

from __future__ import annotations

import json

import pytest

from tests.cluster.applied import Applied
from tests.cluster.conftest import ApplySpec
from tests.cluster.control_plane import Object
from tests.manifests.specs import CHANGES

pytestmark = pytest.mark.cluster

SPECS = {
    name: CHANGES[name]
    for name in (
        "default", "gateway", "stores elsewhere", "no autoscaling", "one node", "locked stores", "small pods",
        "long name", "other ports", "tight times",
    )
} | {"one replica": {"autoscaling": None, "kubernetes": {"replicas": 1, "worker_replicas": 1}}}  # fmt: skip
MANAGER = "kubectl"


@pytest.fixture(params=SPECS)
def applied(request: pytest.FixtureRequest, apply_spec: ApplySpec) -> Applied:
    return apply_spec(request.param, SPECS[request.param])


def test_the_api_server_accepts_every_object_of_a_spec_without_a_warning(applied: Applied) -> None:
    """kubectl asks for strict validation: an unknown field, a wrong type, a broken rule of the schema is refused."""
    held = applied.objects()

    assert list(held) == [f"{each['kind']}/{each['metadata']['name']}" for each in applied.documents]


def test_everything_of_a_spec_becomes_available(applied: Applied) -> None:
    """Every pod passes Pod Security, is scheduled, gets its volume; Deployments and StatefulSets are then available."""
    applied.await_available()

    pods = applied.plane.api.get(f"/api/v1/namespaces/{applied.namespace}/pods").json()["items"]
    parts = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods}
    workloads = [each for each in applied.documents if each["kind"] in ("Deployment", "StatefulSet")]
    assert parts == {each["metadata"]["labels"]["app.kubernetes.io/name"] for each in workloads}
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}


def test_a_second_apply_changes_nothing(applied: Applied) -> None:
    """Managed fields, the time of their manager and the generation stay the same. An object that only the apply writes
    keeps its resourceVersion, so nothing was stored. Controllers update the status of the other objects meanwhile.
    """
    applied.await_available()
    before = applied.objects()

    applied.apply()

    after = applied.objects()
    assert {name: _ours(found) for name, found in after.items()} == {name: _ours(each) for name, each in before.items()}
    # a Gateway's definition gives its status a default, which the API server first stores with the second apply
    ours = {name: found for name, found in before.items() if found["kind"] != "Gateway"}
    ours_alone = [name for name, found in ours.items() if len(found["metadata"]["managedFields"]) == 1]
    assert {name: _version(after[name]) for name in ours_alone} == {name: _version(before[name]) for name in ours_alone}
    assert {name.partition("/")[0] for name in ours_alone} >= {"ServiceAccount", "NetworkPolicy", "Service"}


def test_an_apply_over_an_edited_object_is_refused_until_it_is_forced(apply_spec: ApplySpec) -> None:
    """Somebody's edit is neither overwritten in silence nor kept for ever."""
    applied = apply_spec("edited", {})
    name = applied.rendered("Service", "api")["metadata"]["name"]
    before = applied.objects()[f"Service/{name}"]
    applied.kubectl("patch", "service", name, '--patch={"spec": {"ports": [{"port": 80, "targetPort": 81}]}}')

    refusal = applied.kubectl("apply", "--server-side", f"--filename={applied.folder / 'kubernetes'}", refused=True)

    assert 'conflict with "kubectl-patch"' in refusal
    applied.apply("--force-conflicts")
    after = applied.objects()[f"Service/{name}"]
    assert after["spec"] == before["spec"]
    assert _ours(after) != _ours(before)


def test_a_pod_that_is_not_restricted_is_refused_in_the_rendered_namespace(apply_spec: ApplySpec) -> None:
    """The label of the namespace is enforced by the API server: else the pods above prove nothing."""
    applied = apply_spec("default", {})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare"},
        "spec": {"containers": [{"name": "bare", "image": "bare"}]},
    }

    refusal = applied.plane.kubectl(
        "apply", f"--namespace={applied.namespace}", "--server-side", "--filename=-", text=json.dumps(pod), refused=True
    )

    assert 'violates PodSecurity "restricted:latest"' in refusal


def _ours(found: Object) -> tuple[object, object]:
    kept = [
        each
        for each in found["metadata"]["managedFields"]
        if each["manager"] == MANAGER and each["operation"] == "Apply"
    ]
    assert len(kept) == 1, found["metadata"]
    return kept[0], found["metadata"].get("generation")


def _version(found: Object) -> str:
    return str(found["metadata"]["resourceVersion"])
