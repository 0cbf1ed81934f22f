"""A real node: kubelet, kube-proxy and containerd, with a control plane that has no other node.

The node has namespaces of its own for processes, mounts and the network. When the tests end, in whatever way, the
kernel kills the first process of these namespaces and with it all others, and releases mounts and network. Empty
cgroups and a folder of files stay after a kill. Their name contains the process of the tests, and the next start
removes those whose process is gone.

A kubelet writes six settings of the kernel, which are the whole machine's. In the node's mount namespace, files with
the values that it wants are mounted over them: it reads these, writes nothing, and the machine keeps its settings.

Kubernetes, containerd, cgroups, mounts, probes and Services are real. The registry of images (registry.py), the DNS of
the cluster (names.py) and the provisioner of volumes (volumes.py) are stand-ins. Nothing enforces a NetworkPolicy.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import psutil

from synapse_ops.systems.host.processes import POLL_S, ProcessMark, spawn
from tests.cluster.control_plane import (
    FIRST_SERVICE,
    NODE,
    PROGRAMS,
    ControlPlane,
    is_ready,
    running_control_plane,
)
from tests.cluster.names import ZONE, serving_names
from tests.cluster.registry import Registry, serving_registry
from tests.cluster.volumes import Volumes, making_volumes

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POD_IMAGE = "tests/pod:1"
_CGROUPS, _PLUGINS = Path("/sys/fs/cgroup"), Path("/usr/lib/cni")
_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDS = ("containerd", "containerd-shim-runc-v2", "runc", "conntrack", "nft", "iptables", "ip", "unshare", "nsenter")
_MARK = re.compile(r"synapse-node-(\d+)-(\d+)-\w+")
# k8s.io/kubernetes/pkg/kubelet/cm: setupKernelTunables
_WANTED_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
# the first process: it reaps what loses its parent, as the first process of a namespace must
_FIRST_PROCESS = "trap : HUP INT TERM; while :; do sleep 3600; done"


def why_no_node() -> str | None:
    """Return why no node can run here, None when one can."""
    if os.geteuid() != 0:
        return "a node of Kubernetes needs root"
    absent = [name for name in _NEEDS if shutil.which(name, path=_ADMIN_PATH) is None]
    absent += [] if (_PLUGINS / "ptp").exists() else ["ptp (containernetworking-plugins)"]
    if absent:
        return f"absent: {', '.join(absent)}; `sh requirements/cluster/node-packages` installs them from Debian"
    if not (PROGRAMS / "node").exists():
        return "absent: the programs of a node, which `sh requirements/cluster/install` builds"
    hierarchies = _hierarchies()
    if not hierarchies or not all(os.access(each, os.W_OK) for each in hierarchies):
        return f"no cgroup can be made below {_CGROUPS}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Ground:
    """The namespaces of a node, connected to the host by one wire.

    folder: of what the node keeps; its name is also that of its cgroups. host: the host's address, where pods reach
    what the tests start. own: the node's. pods: their addresses.
    """

    first: ProcessMark
    folder: Path
    host: str
    own: str
    pods: IPv4Network

    @property
    def cgroup(self) -> Path:
        """Return the cgroup below which its pods are, in the hierarchy of the controller of memory."""
        place = _CGROUPS / "memory"
        return (place if place.exists() else _CGROUPS) / self.folder.name

    def inside(self, *argv: str | Path) -> list[str]:
        """Return the command that runs a command in the node's namespaces."""
        target = ("--target", str(self.first.pid), "--net", "--pid", "--mount")
        return ["nsenter", *target, "--", *(str(part) for part in argv)]

    def run(self, *argv: str | Path, check: bool = True) -> str:
        """Run a command in the node's namespaces, and return what it writes."""
        return _run(*self.inside(*argv), check=check)


@dataclass(frozen=True)
class Node:
    """processes: by the name of the program. registry: where its images come from; `load_images` gives it some."""

    plane: ControlPlane
    ground: Ground
    registry: Registry
    volumes: Volumes
    names: dict[str, str]
    processes: dict[str, ProcessMark]

    @property
    def host(self) -> str:
        """The host's address for pods: a server that the tests start must listen there to be reached."""
        return self.ground.host

    def load_images(self, *archives: Path) -> list[str]:
        """Make the images of archives (`docker save`) ones that the node can pull, and return their names."""
        return [name for archive in archives for name in self.registry.take(archive)]

    def make_volume(self, namespace: str, claim: str) -> Path:
        """Return the folder of the host behind a claim, as soon as the claim is bound."""
        found = self.plane.when(
            f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}",
            lambda each: each["status"].get("phase") == "Bound",
        )
        return self.volumes.folder_of(found)

    def make_namespace(self, name: str) -> None:
        """Make a namespace, and wait until its default account can run pods."""
        self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self.plane.when(f"/api/v1/namespaces/{name}/serviceaccounts/default", bool)

    def execute(self, namespace: str, pod: str, *argv: str, container: str | None = None) -> str:
        """Run a command in a pod, by `kubectl exec`, and return what it writes."""
        chosen = (f"--container={container}",) if container else ()
        return self.plane.kubectl(f"--namespace={namespace}", "exec", pod, *chosen, "--", *argv)


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """Run a control plane and its one node until the block ends; the kernel ends them with this thread."""
    clear_left_overs()
    with ExitStack() as stack:
        ground = stack.enter_context(_ground(folder))
        plane = stack.enter_context(running_control_plane(folder / "control-plane", ground.host))
        registry = stack.enter_context(serving_registry(ground.host))
        archive = ground.folder / "pod.tar"
        save_program(archive, POD_IMAGE, PROGRAMS / "pod")
        registry.take(archive)
        names: dict[str, str] = {}
        stack.enter_context(serving_names(plane.api, ground.host, names))
        volumes = stack.enter_context(making_volumes(plane.api, ground.folder / "volumes"))
        processes = _start(plane, ground, registry, folder)
        yield Node(plane, ground, registry, volumes, names, processes)


def save_program(archive: Path, name: str, program: Path) -> None:
    """Write an archive as `docker save` does, of an image with one static program."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("tmp", "data"):
            made = tarfile.TarInfo(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(made)
        tar.add(program, program.name, filter=_owned_by_root)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "10001:10001"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.getvalue())}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for path, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755
    return member


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


# ---------------------------------------------------------------- the ground


@contextmanager
def _ground(logs: Path) -> Iterator[Ground]:
    """Make the namespaces, the wire and the cgroups, and remove them when the block ends."""
    me = ProcessMark.of(os.getpid())
    assert me is not None
    prefix = f"synapse-node-{me.pid}-{me.started_s:.0f}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    holder: ProcessMark | None = None
    try:
        process = spawn(
            None,
            ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc",
             "sh", "-c", _FIRST_PROCESS],
            log_path=logs / "first.log", die_with_parent=signal.SIGKILL,
        )  # fmt: skip
        holder = ProcessMark.of(process.pid)
        assert holder is not None, (logs / "first.log").read_text()
        ground = _connected(_first_process(process.pid, logs / "first.log"), folder)
        for hierarchy in _hierarchies():
            (hierarchy / folder.name).mkdir()
        _prepare(ground)
        yield ground
    finally:
        if holder is not None:
            _end_all(holder)
        _remove(folder)


def _first_process(holder: int, log: Path) -> ProcessMark:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(holder).children():
                mark = ProcessMark.of(child.pid)
                if mark is not None and child.name() == "sh":  # before, it is unshare itself, still mounting
                    return mark
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(POLL_S)


def _connected(first: ProcessMark, folder: Path) -> Ground:
    """Lay the wire: the first of 256 pairs of networks that the host has no route to."""
    taken = [IPv4Network(each["dst"]) for each in json.loads(_run("ip", "-json", "route")) if each["dst"] != "default"]
    last = "no network was tried"
    for number in range(256):
        wire, pods = IPv4Network(f"10.213.{number}.0/30"), IPv4Network(f"10.214.{number}.0/24")
        if any(each.overlaps(wire) or each.overlaps(pods) for each in taken):
            continue
        host, own = (str(each) for each in wire.hosts())
        name = f"synapse-node-{number}"[:15]
        try:
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(first.pid))
        except AssertionError as refused:  # other tests were quicker
            last = str(refused)
            continue
        _run("ip", "address", "add", f"{host}/30", "dev", name)
        _run("ip", "link", "set", name, "up")
        _run("ip", "route", "add", str(pods), "via", own)
        return Ground(first, folder, host, own, pods)
    raise AssertionError(f"no network is free for a node: {last}")


def _prepare(ground: Ground) -> None:
    """Bring up the node's network, and put what the kubelet wants to read before the kernel's settings."""
    for command in (
        ("ip", "link", "set", "lo", "up"),
        ("ip", "address", "add", f"{ground.own}/30", "dev", "eth0"),
        ("ip", "link", "set", "eth0", "up"),
        ("ip", "route", "add", "default", "via", ground.host),
        ("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),  # of this network namespace alone
        ("mount", "--make-rshared", "/"),  # within this mount namespace: volumes reach containers
    ):
        ground.run(*command)
    for name, value in _WANTED_SETTINGS.items():
        shown = ground.folder / name.replace("/", ".")
        shown.write_text(f"{value}\n")
        ground.run("mount", "--bind", shown, f"/proc/sys/{name}")


def _end_all(holder: ProcessMark) -> None:
    """End the first process; the kernel ends all others of its namespace before it lets it go."""
    inside = psutil.Process(holder.pid).children() if holder.is_alive() else []
    marks = [mark for child in inside if (mark := ProcessMark.of(child.pid)) is not None]
    for mark in (*marks, holder):
        mark.signal(signal.SIGKILL)
    for mark in (*marks, holder):
        assert mark.wait_gone(STOP_TIMEOUT_S), f"{mark} did not end"


def _remove(folder: Path) -> None:
    """Remove the folder of a node whose processes are gone, and its cgroups, which are empty then."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for hierarchy in _hierarchies():
        for path in sorted((hierarchy / folder.name).glob("**/"), reverse=True):
            while path.is_dir():
                try:
                    path.rmdir()
                except OSError:  # its last process is still on its way out
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(POLL_S)
    shutil.rmtree(folder)


def clear_left_overs() -> None:
    """Remove what tests that were killed left: folders and cgroups whose names say a process that has gone."""
    places = [Path(tempfile.gettempdir()), *_hierarchies()]
    for name in sorted({each.name for place in places for each in place.glob("synapse-node-*")}):
        said = _MARK.fullmatch(name)
        owner = ProcessMark.of(int(said[1])) if said else None
        if said and (owner is None or f"{owner.started_s:.0f}" != said[2]):
            folder = Path(tempfile.gettempdir()) / name
            folder.mkdir(exist_ok=True)
            _remove(folder)


def _hierarchies() -> list[Path]:
    """Return where cgroups are made: one folder for each controller, or the one of cgroup 2."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [each for each in sorted(_CGROUPS.glob("*/")) if each.is_mount() and not each.is_symlink()]


# ---------------------------------------------------------------- its programs


def _start(plane: ControlPlane, ground: Ground, registry: Registry, logs: Path) -> dict[str, ProcessMark]:
    """Start the node's programs, and wait until its node is ready."""
    keeps = ground.folder
    _write_settings(plane, ground, registry)
    marks: dict[str, ProcessMark] = {}

    def start(name: str, *argv: str | Path) -> None:
        process = spawn(
            None, ground.inside(*argv), log_path=logs / f"{name}.log", cwd=keeps,
            env={"PATH": _ADMIN_PATH, "HOME": str(keeps)}, die_with_parent=signal.SIGKILL,
        )  # fmt: skip
        mark = ProcessMark.of(process.pid)
        assert mark is not None, (logs / f"{name}.log").read_text()
        marks[name] = mark

    def await_so(name: str, is_so: object) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_so():  # type: ignore[operator]
            log = (logs / f"{name}.log").read_text()[-3000:]
            assert marks[name].is_alive(), f"{name} ended: {log}"
            assert time.monotonic() < deadline, f"{name} did not start: {log}"
            time.sleep(5 * POLL_S)

    start("containerd", "containerd", "--config", keeps / "containerd.toml")
    await_so("containerd", (keeps / "containerd.sock").exists)
    start(
        "kubelet", PROGRAMS / "node", "kubelet", f"--config={keeps / 'kubelet.json'}", f"--node-ip={ground.own}",
        f"--kubeconfig={plane.folder / 'kubelet'}", f"--hostname-override={NODE}", f"--root-dir={keeps / 'kubelet'}",
        f"--node-labels=topology.kubernetes.io/zone=zone-a,kubernetes.io/hostname={NODE}", "--v=1",
    )  # fmt: skip
    start("proxy", PROGRAMS / "node", "proxy", f"--config={keeps / 'proxy.json'}")
    path = f"/api/v1/nodes/{NODE}"

    def node_is_ready() -> bool:
        found = plane.api.get(path)
        return found.status_code == 200 and is_ready(found.json())

    await_so("kubelet", node_is_ready)
    await_so("proxy", lambda: FIRST_SERVICE in ground.run("nft", "list", "ruleset", check=False))
    return marks


def _write_settings(plane: ControlPlane, ground: Ground, registry: Registry) -> None:
    keeps = ground.folder
    certificate, key = plane.authority.issue("kubelet", NODE, ground.own)
    (keeps / "containerd.toml").write_text(_CONTAINERD.format(keeps=keeps, plugins=_PLUGINS))
    (keeps / "registries" / "_default").mkdir(parents=True)
    (keeps / "registries" / "_default" / "hosts.toml").write_text(
        f'[host."{registry.address}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    (keeps / "networks").mkdir()
    # not a bridge: from pod to pod through a Service the answer must pass the node, which turns its address back
    (keeps / "networks" / "10-pods.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "1.0.0",
                "name": "pods",
                "plugins": [
                    {
                        "type": "ptp",
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(keeps / "addresses"),
                            "ranges": [[{"subnet": str(ground.pods)}]],
                            "routes": [{"dst": "0.0.0.0/0"}],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        )
    )
    socket = f"unix://{keeps / 'containerd.sock'}"
    (keeps / "resolv.conf").touch()
    (keeps / "kubelet.json").write_text(
        json.dumps(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "address": ground.own,
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(plane.authority.file)},
                },
                "authorization": {"mode": "Webhook"},
                "tlsCertFile": str(certificate),
                "tlsPrivateKeyFile": str(key),
                "clusterDNS": [ground.host],
                "clusterDomain": ZONE,
                "resolvConf": str(keeps / "resolv.conf"),
                "containerRuntimeEndpoint": socket,
                "imageServiceEndpoint": socket,
                "cgroupDriver": "cgroupfs",
                "cgroupRoot": f"/{keeps.name}",
                "failCgroupV1": False,
                "enforceNodeAllocatable": [],
                "failSwapOn": False,
                "makeIPTablesUtilChains": False,
                "podLogsDir": str(keeps / "pod-logs"),
                "volumePluginDir": str(keeps / "volume-plugins"),
                "staticPodPath": "",
                # the disk and the memory are the machine's, on which others work
                "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
                "imageGCHighThresholdPercent": 100,
                "serializeImagePulls": False,
                # a deleted or changed pod is seen at once
                "syncFrequency": "10s",
                "fileCheckFrequency": "10s",
                "nodeStatusUpdateFrequency": "5s",
                "registryPullQPS": 0,
            }
        )
    )
    (keeps / "proxy.json").write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "clientConnection": {"kubeconfig": str(plane.folder / "proxy")},
                "hostnameOverride": NODE,
                "mode": "nftables",
                "healthzBindAddress": f"{ground.own}:10256",
                "metricsBindAddress": f"{ground.own}:10249",
                "conntrack": {"maxPerCore": 0, "min": 0},
                "detectLocalMode": "ClusterCIDR",
                "clusterCIDR": str(ground.pods),
            }
        )
    )


_CONTAINERD = """\
version = 2
root = "{keeps}/containerd"
state = "{keeps}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{keeps}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{keeps}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "tests/pod:1"
  # without the right to lower it, a container that wants less than its parent's does not start
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{keeps}/networks"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{keeps}/registries"
"""


def _run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, env={"PATH": _ADMIN_PATH}, cwd="/"
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout
