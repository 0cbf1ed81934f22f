"""What the rendered accounts may do, as the API server's own authorizer answers."""

from __future__ import annotations

import pytest

from tests.cluster.applied import Applied
from tests.cluster.conftest import ApplySpec

pytestmark = pytest.mark.cluster

Rule = tuple[tuple[str, ...], ...]


def test_no_account_may_do_more_than_one_that_nobody_gave_a_right(apply_spec: ApplySpec) -> None:
    """No process of the stack asks the API server: it reads files, and other servers. `unbound` is the measure."""
    applied = apply_spec("default", {})
    accounts = [each["metadata"]["name"] for each in applied.documents if each["kind"] == "ServiceAccount"]

    found = {name: _rules_of(applied, name) - _rules_of(applied, "unbound") for name in accounts}

    assert len(accounts) == 8
    assert not any(found.values()), found


def test_no_pod_carries_a_token_of_its_account(apply_spec: ApplySpec) -> None:
    """As the API server admitted the pods: its own admission adds a volume with a token where none is refused."""
    applied = apply_spec("default", {})
    applied.await_available()

    pods = applied.plane.api.get(f"/api/v1/namespaces/{applied.namespace}/pods").json()["items"]

    carried = [source for pod in pods for volume in pod["spec"]["volumes"] for source in _sources(volume)]
    assert pods
    assert carried
    assert all(set(source) <= {"secret", "configMap"} for source in carried)


def _sources(volume: dict[str, object]) -> list[dict[str, object]]:
    projected = volume.get("projected")
    return list(projected["sources"]) if isinstance(projected, dict) else []


def _rules_of(applied: Applied, account: str) -> set[Rule]:
    """Return what `kubectl auth can-i --list` shows an account in the stack's namespace."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{applied.namespace}", "system:authenticated")
    headers = [("Impersonate-User", f"system:serviceaccount:{applied.namespace}:{account}")]
    headers += [("Impersonate-Group", group) for group in groups]
    answer = applied.plane.api.post(
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        headers=headers,
        json={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": applied.namespace},
        },
    )
    assert answer.status_code == 201, answer.text
    status = answer.json()["status"]
    assert not status["incomplete"], status
    fields = ("verbs", "apiGroups", "resources", "resourceNames")
    rules = {tuple(tuple(each.get(field) or ()) for field in fields) for each in status["resourceRules"]}
    return rules | {(tuple(each["verbs"]), tuple(each["nonResourceURLs"])) for each in status["nonResourceRules"]}
