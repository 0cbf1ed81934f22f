"""The WAL receiver works where it is rendered, and is rendered wherever WAL is to be stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from synapse_ops.spec.units import parse_size
from tests.manifests.consistency.findings import Finding, Rule, View, load_yaml

_NAME = "wal-receiver"
_COMPOSE = "docker/compose.yaml"
_DRAIN_S = 10  # what has arrived is stored at a stop


def wal_is_received_in_every_place(view: View) -> Iterator[Finding]:
    """With `wal_archiving: continuous` compose, cluster and hosts each have a receiver and its scrape; else none."""
    rule, wanted = "wal_is_received_in_every_place", view.spec.backup.database.wal_archiving == "continuous"
    jobs = [
        [job["job_name"] for job in view.yaml(path)["scrape_configs"]]
        for path in ("prometheus/prometheus.compose.yml", "prometheus/prometheus.kubernetes.yml")
    ]
    found = {
        _COMPOSE: _NAME in view.compose["services"],
        "kubernetes": _deployment(view) is not None,
        "hosts": "Restart=always" in view.text("hosts/synapse-ops-wal.service"),
        "prometheus": all("wal" in names for names in jobs),
    }
    for place, has in found.items():
        if has != wanted:
            yield Finding(rule, place, "WAL is to be stored and is not" if wanted else "WAL is stored and is not to be")


def _deployment(view: View) -> tuple[str, dict[str, Any]] | None:
    for path, found in view.of_kind("Deployment"):
        if found["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/name") == _NAME:
            return path, found
    return None


def the_wal_receiver_has_what_it_needs(view: View) -> Iterator[Finding]:
    """One at a time. A store that is away makes it not ready and never starts it anew. Its directory has room for the
    spool; it leaves a lost node at once; its key outlives it; it has time to store what has arrived; it is told of no
    decryption key.
    """
    rule, service = "the_wal_receiver_has_what_it_needs", view.compose["services"].get(_NAME)
    deployed = _deployment(view)
    if deployed is None or service is None:
        return
    path, found = deployed
    pod = found["spec"]["template"]["spec"]
    [container] = pod["containers"]
    if found["spec"]["strategy"]["type"] != "Recreate" or found["spec"]["replicas"] != 1:
        yield Finding(rule, path, "two of them run at once during a rollout")
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    if asked != {"startup": "/metrics", "liveness": "/metrics", "readiness": "/health"}:
        yield Finding(rule, path, f"is asked for {asked}: only readiness may depend on others")
    if [each["tolerationSeconds"] for each in pod.get("tolerations", ())] != [30, 30]:
        yield Finding(rule, path, "stays on a lost node for minutes")
    if "/health" in str(service["healthcheck"]["test"]):
        yield Finding(rule, _COMPOSE, "is unhealthy while the store is away")
    directory = container["args"][container["args"].index("--state-dir") + 1]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    rooms = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == mounted.get(directory)]
    spool, most = view.spec.backup.database.wal.spool, container["resources"]["limits"]["ephemeral-storage"]
    if not rooms or not spool < parse_size(rooms[0]) < parse_size(most):
        yield Finding(rule, path, f"a spool of {spool} bytes does not fit {rooms} of {most}")
    if ("--digest-key" in container["args"]) != bool(view.spec.encryption.recipients):
        yield Finding(rule, path, "cannot compare encrypted WAL after a rollout")
    if directory not in {mount["target"] for mount in service["volumes"] if mount["type"] == "volume"}:
        yield Finding(rule, _COMPOSE, "its spool and its key end with the container")
    if min(pod["terminationGracePeriodSeconds"], int(service["stop_grace_period"][:-1])) <= _DRAIN_S:
        yield Finding(rule, path, "is killed before what has arrived is stored")
    told = load_yaml(view.text("docker/wal-receiver/infrastructure.yaml"))[0]
    if told["encryption"]["identity"] is not None:
        yield Finding(rule, _COMPOSE, "is told of a decryption key")


def policies_let_wal_through(view: View) -> Iterator[Finding]:
    """Each PostgreSQL node of the cluster lets the receiver in, and the receiver's own policy lets it out to them."""
    rules = {
        found["metadata"]["labels"]["app.kubernetes.io/name"]: found["spec"]
        for _, found in view.of_kind("NetworkPolicy")
    }
    if _NAME not in rules:
        return
    for node in sorted({"db-primary", "db-standby"} & rules.keys()):
        ways = ((rules[node]["ingress"], "from", _NAME), (rules[_NAME]["egress"], "to", node))
        for entries, key, peer in ways:
            wanted = {"app.kubernetes.io/name": peer}.items()
            ports = [
                port["port"]
                for entry in entries
                if any(wanted <= one.get("podSelector", {}).get("matchLabels", {}).items() for one in entry[key])
                for port in entry["ports"]
            ]
            if view.spec.database.port not in ports:
                message = f"WAL does not pass between {node} and its receiver"
                yield Finding("policies_let_wal_through", "kubernetes/20-network.yaml", message)


RULES: tuple[Rule, ...] = (
    wal_is_received_in_every_place,
    the_wal_receiver_has_what_it_needs,
    policies_let_wal_through,
)
