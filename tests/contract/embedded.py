"""The embedded vector store as a process of its own, for tests that speak to it, kill it and start it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.local.servers.vectors import is_ready
from synapse_ops.systems.host.processes import free_ports
from tests.contract.collection_snapshots import ContractClient

READY_TIMEOUT_S = 30.0
KEY = "tests-only-key"


@dataclass
class EmbeddedQdrant:
    """One process over one folder. Objects only; nothing runs until `start`."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> ContractClient:
        return ContractClient(self.url, KEY)

    def argv(self) -> list[str]:
        key_file = self.folder / "key"
        key_file.write_text(KEY + "\n")
        return [
            *(sys.executable, "-m", "synapse_ops.local.qdrant_server"),
            *("--data", str(self.data), "--port", str(self.port), "--key-file", str(key_file)),
        ]

    def start(self) -> EmbeddedQdrant:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv(), stdout=log, stderr=log)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_ready(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text())
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """End it as a power cut would end a process."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.terminate()
        return self.process.wait(READY_TIMEOUT_S)
