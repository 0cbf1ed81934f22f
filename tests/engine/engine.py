"""A Docker engine of the tests' own: a real dockerd in mount, network and process namespaces that end with it.

All that it makes is in them: mounts, bridges, iptables chains, containers. The host's network and its own engine, if it
has one, are not touched, and a published port is one of the engine's namespace: the rendered 80 and 443 are free there.
slirp4netns, a network stack in user space, leads from there to the host's network: HOST is the host's loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from synapse_ops.systems.host.processes import POLL_S, ProcessMark, spawn

# as containers reach them: the loopback of the host, and the engine's own namespace
HOST, ENGINE = "10.0.2.2", "10.0.2.100"
_NAMESERVER = "10.0.2.3"  # its name for the host's
ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / ".synapse-tools" / "bin" / "docker-compose"
START_TIMEOUT_S, STOP_TIMEOUT_S, COMMAND_TIMEOUT_S = 60.0, 30.0, 180.0
BUILD_TIMEOUT_S = 900.0
_PROGRAMS = ("dockerd", "docker", "docker-init", "unshare", "nsenter", "slirp4netns", "ip", "mount", "iptables")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP = "synapse-engine-"  # and the pid of whose it is
_CLONE_NEWNET = 0x40000000

# The first process of the namespaces: what becomes of orphans is docker-init's work. Their /run is their own, and holds
# containerd's sockets: below a folder of the tests their paths would be longer than the kernel's 107 characters.
_FIRST = """\
set -eu
ip link set lo up
mount -t tmpfs tmpfs /run
resolver=$(readlink -m /etc/resolv.conf)
mkdir -p "$(dirname "$resolver")"
[ -e "$resolver" ] || : >"$resolver"
mount --bind "$1/resolv.conf" "$resolver"
exec docker-init -- dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root /run/docker \\
  --pidfile /run/docker.pid --cgroup-parent "/$2" --exec-opt native.cgroupdriver=cgroupfs --group 0
"""


def why_no_engine() -> str | None:
    """Return why no engine can be started on this host; None when one can be tried."""
    if os.geteuid() != 0:
        return "Docker's engine needs root"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"absent: {', '.join(absent)}; requirements/engine installs them on Debian"
    if not Path("/dev/net/tun").exists():
        return "slirp4netns needs /dev/net/tun, which this host has not"
    tried = subprocess.run(
        [_program("unshare"), "--mount", "--net", "--pid", "--fork", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    return None if tried.returncode == 0 else f"this host allows no namespaces: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Engine:
    """folder: holds its socket, its images and its log. first: the first process of its namespaces."""

    folder: Path
    first: ProcessMark

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client of Docker's needs to reach this engine, and nothing of the shell's."""
        return {
            "PATH": _PATH,
            "HOME": str(self.folder),
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_BUILDKIT": "0",  # needs buildx, which Debian's package has not
        }

    def docker(self, *arguments: str | Path, text: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run docker's command line, and return what it writes to standard output. It must succeed."""
        return self._run([_program("docker"), *arguments], text=text, timeout_s=timeout_s)

    def compose(
        self,
        files: Sequence[Path],
        *arguments: str,
        timeout_s: float = COMMAND_TIMEOUT_S,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Run docker-compose on files that are laid over each other, and return what it writes to standard output.

        It must succeed. variables: what the files read of the environment.
        """
        given = [f"--file={file}" for file in files]
        return self._run([COMPOSE, *given, *arguments], timeout_s=timeout_s, variables=variables)

    def import_rootfs(self, tar: Path, tag: str, changes: Sequence[str] = ()) -> None:
        """Make an image from the archive of a whole file system. changes: instructions as in a Dockerfile."""
        given = [part for change in changes for part in ("--change", change)]
        self.docker("import", *given, tar, tag, timeout_s=BUILD_TIMEOUT_S)

    def build(
        self, context: Path, tag: str, *, dockerfile: Path | None = None, arguments: Mapping[str, str] | None = None
    ) -> None:
        """Build an image for real. Steps have the network of the engine, which leads to the host's.

        The classic builder reads `.dockerignore` of the context only: see images.context_of.
        """
        options: list[str | Path] = ["--network=host", f"--tag={tag}", "--force-rm"]
        options += [f"--file={dockerfile}"] if dockerfile is not None else []
        options += [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
        self.docker("build", *options, context, timeout_s=BUILD_TIMEOUT_S)

    def save(self, tar: Path, *tags: str) -> None:
        """Write images to an archive that containerd imports too: `ctr images import`."""
        self.docker("save", f"--output={tar}", *tags, timeout_s=BUILD_TIMEOUT_S)

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a process of a container, by the number that `docker inspect` gives."""
        # of the engine's namespace, where it is not the host's number. `docker kill` would say: stopped by hand
        spaces = [f"--target={self.first.pid}", "--pid", "--mount"]
        self._run([_program("nsenter"), *spaces, "kill", "-9", str(pid)], timeout_s=COMMAND_TIMEOUT_S)

    @contextmanager
    def forwarded(self, port: int) -> Iterator[int]:
        """Yield a free port of this host's loopback that leads to a published port of the engine."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._forward, args=(listener, port), daemon=True).start()
            try:
                yield listener.getsockname()[1]
            finally:
                listener.shutdown(socket.SHUT_RDWR)

    def _forward(self, listener: socket.socket, port: int) -> None:
        _enter_network_of(self.first.pid)  # of this thread alone: it and those that it starts are there
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", port), 10)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def _run(
        self,
        argv: Sequence[str | Path],
        *,
        text: str | None = None,
        timeout_s: float,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            [str(part) for part in argv],
            env=self.environment | dict(variables or {}),
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        assert done.returncode == 0, f"{argv[0]} {' '.join(map(str, argv[1:]))}: {done.returncode}\n{said}"
        return done.stdout


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Run an engine until the block ends; the kernel ends it and its containers with this thread, however that ends.

    What it kept in the folder is removed. Empty cgroups of one whose tests were killed are removed by the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "data", ignore_errors=True)  # of one that was killed: its volumes would be the next one's
    (folder / "resolv.conf").write_text(f"nameserver {_NAMESERVER}\n")
    _remove_cgroups()
    environment = {"PATH": _PATH, "HOME": str(folder)}
    spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation=private"]
    parent = spawn(
        None,
        [_program("unshare"), *spaces, "sh", "-c", _FIRST, "first", folder, f"{_CGROUP}{os.getpid()}"],
        log_path=folder / "dockerd.log",
        env=environment,
        die_with_parent=signal.SIGKILL,
    )
    network: subprocess.Popen[bytes] | None = None
    first: ProcessMark | None = None
    try:
        first = _first_process(parent, folder)
        network = spawn(
            None,
            [_program("slirp4netns"), "--configure", "--mtu=65520", str(first.pid), "tap0"],
            log_path=folder / "slirp4netns.log",
            env=environment,
            die_with_parent=signal.SIGKILL,
        )
        engine = Engine(folder, first)
        _await_ready(engine, parent)
        yield engine
    finally:
        for process in (parent, network):
            if process is not None:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
        if first is not None:
            first.wait_gone(STOP_TIMEOUT_S)
        shutil.rmtree(folder / "data", ignore_errors=True)
        _remove_cgroups()


def _first_process(parent: subprocess.Popen[bytes], folder: Path) -> ProcessMark:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(parent.pid).children():
                # its namespaces are made before it is
                if (mark := ProcessMark.of(child.pid)) is not None:
                    return mark
        assert parent.poll() is None, _tail(folder / "dockerd.log")
        assert time.monotonic() < deadline, _tail(folder / "dockerd.log")
        time.sleep(POLL_S)


def _await_ready(engine: Engine, parent: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    argv = [_program("docker"), "version"]
    while (
        not _has_route(engine.first.pid)
        or subprocess.run(argv, env=engine.environment, capture_output=True, check=False, timeout=60).returncode
    ):
        assert parent.poll() is None, _tail(engine.folder / "dockerd.log")
        assert time.monotonic() < deadline, _tail(engine.folder / "dockerd.log")
        time.sleep(5 * POLL_S)


def _has_route(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "tap0" in Path(f"/proc/{pid}/net/route").read_text()
    return False


def _remove_cgroups() -> None:
    """Remove the empty cgroups of engines whose tests have ended, and of this one."""
    for place in {*_CGROUPS.glob(f"{_CGROUP}*"), *_CGROUPS.glob(f"*/{_CGROUP}*")}:
        owner = int(place.name.removeprefix(_CGROUP))
        if owner == os.getpid() or not psutil.pid_exists(owner):
            folders = [Path(name) for name, _, _ in os.walk(place, topdown=False)]
            for folder in folders:
                with contextlib.suppress(OSError):  # one that is not empty yet is another engine's, or the next's work
                    folder.rmdir()


def _enter_network_of(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(place, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(place)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def _program(name: str) -> str:
    return shutil.which(name, path=_PATH) or name


def main() -> int:
    """Say why no engine can be started here; 0 when one can be tried."""
    if (why := why_no_engine()) is not None:
        print(f"no Docker engine can be started here: {why}")
        return 1
    return 0


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else "no log"


if __name__ == "__main__":
    sys.exit(main())
