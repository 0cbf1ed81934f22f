"""docs/recovery.md restores a backup with ordinary tools: its commands are run as they stand there."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable

from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import KeptBackup
from tests.operations.database.by_hand import environment_of, run_page, stop_server
from tests.servers import servers_dir


def test_the_page_restores_an_encrypted_backup_without_this_tool(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    object_store_access: StoreAccess,
    key_pair: tuple[str, str],
    server_tools: PgTools,
) -> None:
    """Objects are fetched, verified, decrypted, restored and counted by ordinary tools; no difference is printed."""
    place = take_backup("create extension citext", recipients=(key_pair[0],)).put(repository)
    folder = servers_dir("by-hand")
    socket_dir = make_socket_dir(folder / "data", server_identity())
    (folder / "key.txt").write_text(key_pair[1] + "\n")
    environment = {
        **environment_of(folder, server_tools, object_store_access),
        "REPOSITORY": repository.url,
        "BACKUP": repository.store.full_url(place.prefix),
        "SCRATCH": str(folder / f"scratch-{secrets.token_hex(3)}"),
        "IDENTITY": str(folder / "key.txt"),
        "PGDATA": str(folder / "data"),
        "PGHOST": str(socket_dir),
        "DATABASE": place.subject,
    }
    try:
        done = run_page("recovery.md", environment, folder)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.rstrip().endswith("server started")
        assert done.stdout.count(": OK") == 5
        assert "error" not in done.stderr.lower()
    finally:
        stop_server(environment)
        shutil.rmtree(folder)
        shutil.rmtree(socket_dir)
