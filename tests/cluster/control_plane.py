"""A control plane of Kubernetes: real programs, built by requirements/cluster.

Defaults, admission, controllers and the scheduler are real. On loopback the control plane has nodes that run nothing:
kwok reports in their name that a pod is ready; no container starts, no probe is asked, no packet is filtered. For an
image with the tag `bad`, it reports that the image cannot be pulled. At another address the control plane has no nodes,
and node.py adds a real one.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from synapse_ops.systems.host.processes import POLL_S, ProcessMark, free_ports, spawn
from tests.cluster.authority import Authority, make_authority

Object = dict[str, Any]

PROGRAMS = Path(__file__).parents[2] / ".synapse-tools" / "cluster" / "bin"
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 5.0
ADMIN, NODE = "admin", "real"
LOOPBACK = "127.0.0.1"
SERVICES, FIRST_SERVICE = "10.96.0.0/16", "10.96.0.1"
# who the programs are: the names that Kubernetes' own roles are bound to
_USERS = {
    ADMIN: ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kwok": ("kwok", "system:masters"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
}
DEFAULT_CLASS = "standard"
NODES = {"node-1": "zone-a", "node-2": "zone-a", "node-3": "zone-b"}
_FAKE = {"kwok.x-k8s.io/node": "fake"}
_BAD_IMAGE = '.spec.containers.[] | select( .image | test(":bad$") ) | .name'


_NOT_PULLED = """\
phase: Pending
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  name: {{ .name | Quote }}
  ready: false
  restartCount: 0
  state:
    waiting:
      reason: ImagePullBackOff
{{ end }}
"""


@dataclass(frozen=True)
class ControlPlane:
    """api: as its administrator. folder: kubeconfigs and logs. processes: by the name of the program."""

    api: httpx.Client
    folder: Path
    authority: Authority
    processes: Mapping[str, ProcessMark]

    def kubectl(self, *arguments: str | Path, text: str | None = None, refused: bool = False) -> str:
        """Run kubectl, and return what it writes to standard output; refused: to standard error, as it must fail."""
        done = subprocess.run(
            [PROGRAMS / "kubectl", f"--kubeconfig={self.folder / ADMIN}", *arguments],
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        assert (done.returncode != 0) is refused, f"kubectl {arguments}: {done.stdout}{done.stderr}"
        # a warning is the API server's word on a field that it does not know, or that is about to go
        assert refused or "Warning" not in done.stderr, done.stderr
        return done.stderr if refused else done.stdout

    def objects(self, *arguments: str | Path) -> list[Object]:
        """Return what `kubectl get` finds."""
        found = json.loads(self.kubectl("get", *arguments, "--output=json", "--show-managed-fields"))
        return list(found["items"]) if found["kind"] == "List" else [found]

    def apply(self, *objects: Object) -> None:
        self.kubectl(
            "apply",
            "--server-side",
            "--filename=-",
            text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        )

    def when(self, path: str, is_so: Callable[[Object], bool], *, timeout_s: float = 30.0) -> Object:
        """Return an object as soon as it is so."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.api.get(path)
            if found.status_code == 200 and is_so(found.json()):
                return found.json()  # type: ignore[no-any-return]
            assert time.monotonic() < deadline, f"{path}: {found.status_code} {found.text[-3000:]}"
            time.sleep(5 * POLL_S)


def until(
    is_so: Callable[[], bool],
    why: Callable[[], str] = lambda: "it is still not so",
    *,
    timeout_s: float = 60.0,
    refused: tuple[type[Exception], ...] = (),
) -> None:
    """Wait until something is so. why: what is said when it is not in time. refused: errors that mean `not yet`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_so():
                return
        except refused:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, why()
        time.sleep(10 * POLL_S)


@contextmanager
def running_control_plane(folder: Path, address: str = LOOPBACK) -> Iterator[ControlPlane]:
    """Run everything until the block ends; the kernel ends it with this thread, however that ends.

    address: where the API server listens.
    """
    marks: dict[str, ProcessMark] = {}
    try:
        yield from _run(folder, address, marks)
    finally:
        for mark in marks.values():
            mark.signal(signal.SIGKILL)
        for mark in marks.values():
            mark.wait_gone(STOP_TIMEOUT_S)
        shutil.rmtree(folder / "etcd", ignore_errors=True)


def _run(folder: Path, address: str, marks: dict[str, ProcessMark]) -> Iterator[ControlPlane]:
    clients, peers = free_ports(2)
    [port] = free_ports(1, host=address)
    etcd, peer, server = f"http://{LOOPBACK}:{clients}", f"http://{LOOPBACK}:{peers}", f"https://{address}:{port}"
    authority = make_authority(folder / "tls")
    # the key also signs the accounts' tokens
    certificate, key = authority.issue("apiserver", address, FIRST_SERVICE, "kubernetes.default.svc")
    client, client_key = authority.issue("kubelet-client", organization="system:masters")
    tokens = {name: secrets.token_urlsafe() for name in _USERS}
    (folder / "tokens.csv").write_text(
        "".join(f"{tokens[name]},{user},{name},{group}\n" for name, (user, group) in _USERS.items())
    )
    for name, token in tokens.items():
        (folder / name).write_text(json.dumps(_kubeconfig(server, authority.file, token)))
    (folder / "stages.yaml").write_text(_stages())

    def start(name: str, *argv: str | Path) -> None:
        process = spawn(None, argv, log_path=folder / f"{name}.log", cwd=folder, die_with_parent=signal.SIGKILL)
        mark = ProcessMark.of(process.pid)
        assert mark is not None, (folder / f"{name}.log").read_text()[-2000:]
        marks[name] = mark

    program = PROGRAMS / "control-plane"
    start(
        "etcd", program, "etcd", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
    )  # fmt: skip
    start(
        "apiserver", program, "apiserver", f"--etcd-servers={etcd}", f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        f"--token-auth-file={folder / 'tokens.csv'}", "--anonymous-auth=false", "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={certificate}",
        f"--service-account-signing-key-file={key}",
        f"--service-cluster-ip-range={SERVICES}", "--enable-admission-plugins=NodeRestriction",
        f"--endpoint-reconciler-type={'none' if address == LOOPBACK else 'lease'}",
        f"--kubelet-client-certificate={client}", f"--kubelet-client-key={client_key}",
        f"--kubelet-certificate-authority={authority.file}", "--kubelet-preferred-address-types=InternalIP",
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(authority.file))
    with httpx.Client(
        base_url=server, verify=context, headers={"Authorization": f"Bearer {tokens[ADMIN]}"}, trust_env=False
    ) as api:
        _await_ready(api, folder, marks)
        start(
            "controller-manager", program, "controller-manager", f"--kubeconfig={folder / 'controller-manager'}",
            "--leader-elect=false", "--secure-port=0", "--use-service-account-credentials", "--controllers=*",
            f"--service-account-private-key-file={key}", f"--root-ca-file={authority.file}",
            "--horizontal-pod-autoscaler-sync-period=2s",
        )  # fmt: skip
        start(
            "scheduler", program, "scheduler", f"--kubeconfig={folder / 'scheduler'}",
            "--leader-elect=false", "--secure-port=0",
        )  # fmt: skip
        plane = ControlPlane(api, folder, authority, marks)
        plane.apply(_storage_class())
        plane.kubectl("apply", "--server-side", f"--filename={PROGRAMS / 'gateway-api'}")
        if address == LOOPBACK:
            start(
                "kwok", PROGRAMS / "kwok", f"--kubeconfig={folder / 'kwok'}", f"--config={folder / 'stages.yaml'}",
                "--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=40", "--node-port=0", "--cidr=10.0.0.0/16",
            )  # fmt: skip
            plane.apply(*(_node(name, zone) for name, zone in NODES.items()))
            for name in NODES:
                plane.when(f"/api/v1/nodes/{name}", is_ready, timeout_s=START_TIMEOUT_S)
        yield plane


def _await_ready(api: httpx.Client, folder: Path, marks: Mapping[str, ProcessMark]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(api):
        for name, mark in marks.items():
            log = (folder / f"{name}.log").read_text()[-3000:]
            assert mark.is_alive(), f"{name} ended: {log}"
            assert time.monotonic() < deadline, f"{name} did not start: {log}"
        time.sleep(POLL_S)


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def is_ready(found: Object) -> bool:
    """Return whether a node or a pod says that it is ready."""
    conditions = found.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _kubeconfig(server: str, authority: Path, token: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def _node(name: str, zone: str) -> Object:
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels, "annotations": _FAKE}}


def _storage_class() -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": DEFAULT_CLASS, "annotations": annotations},
        "provisioner": "kubernetes.io/no-provisioner",
    }


def _stages() -> str:
    """Return kwok's own stages, told apart by the tag of an image."""
    from ruamel.yaml import YAML

    kept = PROGRAMS / "stages"
    files = [
        "node/fast/node-initialize.yaml",
        *(f"pod/fast/pod-{name}.yaml" for name in ("ready", "complete", "delete")),
    ]
    stages: list[Object] = [YAML(typ="safe").load(kept / name) for name in files]
    node = stages[0]["spec"]["next"]  # which has no disk: what asks for some would not be scheduled
    node["statusTemplate"] = node["statusTemplate"].replace("memory: 1Ti", "memory: 1Ti\n  ephemeral-storage: 1Pi")
    ready = next(stage for stage in stages if stage["metadata"]["name"] == "pod-ready")
    conditions: list[Object] = ready["spec"]["selector"]["matchExpressions"]
    unless = {"key": _BAD_IMAGE, "operator": "DoesNotExist"}
    bad = {
        "apiVersion": ready["apiVersion"],
        "kind": "Stage",
        "metadata": {"name": "pod-bad-image"},
        "spec": {
            "resourceRef": ready["spec"]["resourceRef"],
            "selector": {
                "matchExpressions": [
                    *conditions,
                    unless | {"operator": "Exists"},
                    {"key": ".status.containerStatuses", "operator": "DoesNotExist"},
                ]
            },
            "next": {"statusTemplate": _NOT_PULLED},
        },
    }
    conditions.append(unless)
    return "---\n".join(json.dumps(stage) + "\n" for stage in (*stages, bad))
