"""Runs SeaweedFS for as long as one process (the test run's controller) lives: `store_guard.py DESCRIPTION PID`.

Writes the store's access as JSON once it is ready. Waits on the process itself, so that kill -9 ends the store too.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from synapse_ops.local.servers.s3 import LISTENERS, SeaweedServer, find_weed
from synapse_ops.systems.host.processes import ProcessMark, free_ports, reachable_by, server_identity
from synapse_ops.systems.postgres.server import make_socket_dir
from tests.servers import servers_dir


class StoreOfTests(SeaweedServer):
    """The store, and a second identity whose keys may only read."""

    reader_secret = secrets.token_hex(16)

    def _write_configuration(self) -> Path:
        config = super()._write_configuration()
        known = json.loads((config / "s3.json").read_text())
        credentials = {"accessKey": "test-reader", "secretKey": self.reader_secret}
        reader = {"name": "reader", "credentials": [credentials], "actions": ["Read", "List"]}
        self._write_secret(config / "s3.json", json.dumps({"identities": [*known["identities"], reader]}))
        return config


def main(description: Path, controller: int) -> None:
    identity = server_identity()
    weed = find_weed()
    if not reachable_by(identity, weed):
        identity = None
    folder = servers_dir("s3")
    store = StoreOfTests(
        weed=weed,
        identity=identity,
        data_dir=folder / "s3",
        socket_dir=make_socket_dir(folder / "s3", identity),
        log_path=folder / "weed.log",
        ports=dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True)),
        access_key="test-access",
        secret_key=secrets.token_hex(16),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        store.begin_start()
        store.wait_ready()
        keys = {store.access_key: store.secret_key, "test-reader": store.reader_secret}
        access = [{"endpoint": store.access.endpoint, "access_key": key, "secret_key": keys[key]} for key in keys]
        making = description.with_suffix(".making")
        making.write_text(json.dumps(access))
        making.replace(description)
        _wait_for_end(controller)
    finally:
        store.stop(5)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(store.socket_dir, ignore_errors=True)


def _wait_for_end(pid: int) -> None:
    if hasattr(os, "pidfd_open"):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        select.select([handle], [], [])
        return
    mark = ProcessMark.of(pid)
    while mark is not None and mark.is_alive():
        time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
