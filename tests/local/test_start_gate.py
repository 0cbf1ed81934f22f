"""No node goes on writing a timeline that was ended; what is not known because the store is away ends no start."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from synapse_ops.domain.backup.layout import timeline_end_key
from synapse_ops.domain.failover.incident import Entry
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.databases import DatabasePasswords, DatabaseServers
from synapse_ops.local.start_gate import fence_if_ended
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.systems.host.processes import free_ports, make_private_dir, server_identity
from synapse_ops.systems.postgres.control_file import control_data
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import FENCE_MARKER, RECOVERY_SIGNAL, STANDBY_SIGNAL, PgServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.servers import servers_dir

THEIRS, OURS = "20261130T114210Z-3f9a1c", "20261130T114210Z-000000"


@dataclass
class Gate:
    """One node that does not run, asked as `local up` asks; up: the store is there."""

    node: PgServer
    layout: StackLayout
    access: StoreAccess
    store: ObjectStore

    def asked(self, *, up: bool = True) -> str | None:
        over = threading.Event()
        over.set()
        access = self.access if up else replace(self.access, endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
        fence_if_ended(self.node, self.layout, access, over)
        return self.node.fence()

    def claim(self, incident: str) -> None:
        self.store.put_bytes(timeline_end_key(*self.cluster()), f'{{"incident": "{incident}"}}'.encode())

    def cluster(self) -> tuple[str, int]:
        control = control_data(self.node.data_dir, self.node.tools, self.node.identity)
        return control["Database system identifier"], int(control["Latest checkpoint's TimeLineID"])

    def promoted_the_other(self) -> None:
        identifier, timeline = self.cluster()
        facts = {"old": self.node.data_dir.name, "system_identifier": identifier, "timeline": timeline}
        Ledger.of(self.layout.root).append(Entry(OURS, State.SWITCHING, None, datetime.now(UTC), facts))


@pytest.fixture(scope="module")
def made(server_tools: PgTools) -> Iterator[PgServer]:
    folder, identity = servers_dir("gate"), server_identity()
    folder.chmod(0o755)
    data = make_private_dir(folder / "data", identity)
    node = PgServer(server_tools, identity, data / "db-primary", folder, 5432, folder / "log")
    node.init(durable=False)
    yield node
    shutil.rmtree(folder)


@pytest.fixture
def gate(made: PgServer, tmp_path: Path, bucket_url: str, object_store_access: StoreAccess) -> Iterator[Gate]:
    (tmp_path / "infrastructure.yaml").write_text(f'backup: {{database: {{destination: "{bucket_url}"}}}}\n')
    layout = StackLayout(tmp_path, tmp_path, made.identity)
    yield Gate(made, layout, object_store_access, ObjectStore(bucket_url, object_store_access))
    for name in (FENCE_MARKER, RECOVERY_SIGNAL, STANDBY_SIGNAL):
        (made.data_dir / name).unlink(missing_ok=True)


def test_a_timeline_that_another_incident_claims_is_not_gone_on_with(gate: Gate) -> None:
    """A data directory that was put back, or a ledger that was lost: only the repository still knows."""
    assert gate.asked() is None
    gate.claim(THEIRS)
    assert gate.asked(up=False) is None  # an outage of the store is none of the database
    assert gate.asked() == THEIRS
    assert gate.asked(up=False) == THEIRS


def test_a_timeline_that_the_ledger_ended_is_not_gone_on_with_whatever_the_store_says(gate: Gate) -> None:
    gate.promoted_the_other()
    gate.layout.spec_file.write_text("backup: 3\n")
    assert gate.asked(up=False) == OURS


@pytest.mark.parametrize("signal_file", [STANDBY_SIGNAL, RECOVERY_SIGNAL])
def test_who_goes_on_with_no_timeline_is_not_asked(gate: Gate, signal_file: str) -> None:
    """A standby follows, and a restored copy goes live on a timeline of its own."""
    gate.claim(THEIRS)
    (gate.node.data_dir / signal_file).touch()
    assert gate.asked() is None


def test_a_standby_is_started_beside_a_fenced_node_whatever_their_names_are(tmp_path: Path, made: PgServer) -> None:
    """With db-standby fenced, db-primary was taken for the one that leads, and a node that leads is no follower."""
    nodes = [replace(made, data_dir=tmp_path / name) for name in ("db-primary", "db-standby", "ops")]
    for node in nodes:
        node.data_dir.mkdir()
    primary, standby, ops = nodes
    (primary.data_dir / STANDBY_SIGNAL).touch()
    (standby.data_dir / FENCE_MARKER).touch()
    layout = StackLayout(tmp_path, tmp_path, None)
    databases = DatabaseServers(layout, DatabasePasswords("a", "b", "c", "d"), primary, standby, ops)
    assert databases.roles() == (standby, primary)
