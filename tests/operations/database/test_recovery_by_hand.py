"""docs/recovery.md restores a backup with ordinary tools: its commands are run as they stand there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import ServerIdentity, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import KeptBackup
from tests.servers import servers_dir

PAGE = Path(__file__).parents[3] / "docs" / "recovery.md"
TIMEOUT_S = 120

# Stand-ins for hosts without aws and age: exactly the calls that the page makes.
AWS = """
import os, sys
from pathlib import Path
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
url = next(word for word in sys.argv if word.startswith("s3://"))
store = ObjectStore(url, StoreAccess.from_environment())
for info in store.list_objects():
    if sys.argv[2] == "ls":
        print(info.modified_at, info.size_bytes, store.prefix + info.key)
    else:
        Path(sys.argv[-1], info.key).write_bytes(store.read_bytes(info.key))
"""
AGE = """
import sys
from pathlib import Path
import pyrage
_, _, _, identity, _, output, source = sys.argv
keys = [pyrage.x25519.Identity.from_str(Path(identity).read_text().strip())]
Path(output).write_bytes(pyrage.decrypt(Path(source).read_bytes(), keys))
"""


def commands_of_the_page() -> str:
    """Return every shell block in order; run as any user, so peer authentication becomes trust, as the page allows."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return "set -euo pipefail\n" + "\n".join(blocks).replace("--auth=peer", "--auth=trust")


def stand_ins(folder: Path, tools: PgTools, identity: ServerIdentity | None) -> Path:
    """Write `aws` and `age` where the host has none, and return the folder for PATH.

    As root, what PostgreSQL refuses to run as root is run as the servers' user, as the page asks.
    """
    scripts = {name: f"#!{sys.executable}\n{program}" for name, program in (("aws", AWS), ("age", AGE))}
    scripts = {name: text for name, text in scripts.items() if shutil.which(name) is None}
    if identity is not None:
        become = f"setpriv --reuid={identity.uid} --regid={identity.gid} --clear-groups"
        for name in ("initdb", "pg_ctl"):
            scripts[name] = f'#!/bin/sh\ncd / && exec {become} {tools.path(name)} "$@"\n'
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    return folder


def test_the_page_restores_an_encrypted_backup_without_this_tool(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    object_store_access: StoreAccess,
    key_pair: tuple[str, str],
    server_tools: PgTools,
) -> None:
    """Objects are fetched, verified, decrypted, restored and counted by ordinary tools; no difference is printed."""
    place = take_backup("create extension citext", recipients=(key_pair[0],)).put(repository)
    identity, tools = server_identity(), server_tools
    folder = servers_dir("by-hand")
    socket_dir = make_socket_dir(folder / "data", identity)
    (folder / "key.txt").write_text(key_pair[1] + "\n")
    (folder / "tools").mkdir(mode=0o755)
    environment = {
        "PATH": f"{stand_ins(folder / 'tools', tools, identity)}:{tools.bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parents[1]),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": object_store_access.access_key or "",
        "AWS_SECRET_ACCESS_KEY": object_store_access.secret_key or "",
        "AWS_ENDPOINT_URL": object_store_access.endpoint or "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "REPOSITORY": repository.url,
        "BACKUP": repository.store.full_url(place.prefix),
        "SCRATCH": str(folder / f"scratch-{secrets.token_hex(3)}"),
        "IDENTITY": str(folder / "key.txt"),
        "PGDATA": str(folder / "data"),
        "PGHOST": str(socket_dir),
        "DATABASE": place.subject,
    }
    try:
        done = subprocess.run(
            ["bash", "-c", commands_of_the_page()],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.rstrip().endswith("server started")
        assert done.stdout.count(": OK") == 5
        assert "error" not in done.stderr.lower()
    finally:
        stop = ["pg_ctl", "--pgdata", environment["PGDATA"], "--mode=immediate", "stop"]
        subprocess.run(["env", *stop], env=environment, cwd="/", capture_output=True, check=False)
        shutil.rmtree(folder)
        shutil.rmtree(socket_dir)
