"""The replication protocol against a real server: WAL as its own files hold it, base backups as it sends them."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator

import psycopg
import pytest
import zstandard

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_pages import PageJudge
from synapse_ops.errors import SynapseOpsError
from synapse_ops.systems.postgres.replication import (
    ReplicationConnection,
    WalData,
    connect_replication,
)
from synapse_ops.systems.postgres.replication_backup import (
    Archive,
    BaseBackupOptions,
    Data,
    Manifest,
    base_backup,
)
from tests.servers import PostgresServer

DEADLINE_S = 20.0


@pytest.fixture
def replication(postgres_server: PostgresServer) -> Iterator[ReplicationConnection]:
    with connect_replication(postgres_server.conninfo(), application_name="test") as connection:
        yield connection


def test_wal_arrives_as_the_servers_own_files_hold_it(
    postgres_server: PostgresServer, replication: ReplicationConnection
) -> None:
    """Bytes and order are the server's, every page is judged, and what is acknowledged shows in its view."""
    assert replication.show("wal_segment_size") == "16MB"
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        # Other tests share the server: what is written below must fit one segment, so it begins one.
        connection.execute("select pg_switch_wal()")
        connection.execute("select txid_current()")
    system = replication.identify()
    segment = Segment.at(system.timeline, system.flush_lsn, 16 << 20)
    judge = PageJudge(
        system_identifier=system.system_identifier,
        history=TimelineHistory(system.timeline),
        start=segment.start,
        segment_bytes=segment.size_bytes,
        page_bytes=8192,
        major=17,
    )
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        connection.execute("create table if not exists replication_test as select generate_series(1, 20000) n")
        connection.execute("drop table replication_test")
        [(lsn,)] = connection.execute("select pg_switch_wal()::text").fetchall()
        connection.execute("select txid_current()")
    received = bytearray()
    stream = replication.stream(None, segment.start, system.timeline)
    deadline = time.monotonic() + DEADLINE_S
    while len(received) < segment.size_bytes:
        assert time.monotonic() < deadline
        message = stream.read(1.0)
        if isinstance(message, WalData):
            judge.take(message.start, message.data)
            received += message.data

    stored = (postgres_server.server.data_dir / "pg_wal" / segment.name).read_bytes()
    assert bytes(received[: segment.size_bytes]) == stored
    stream.acknowledge(segment.stop, segment.stop)
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        query = "select flush_lsn::text, replay_lsn::text from pg_stat_replication where application_name = 'test'"
        while connection.execute(query).fetchall() != [(str(segment.stop),) * 2]:
            assert time.monotonic() < deadline
    assert segment.start <= Lsn.parse(lsn) <= segment.stop


def test_a_slot_reserves_wal_at_once(replication: ReplicationConnection) -> None:
    """Without RESERVE_WAL the server could remove what was written before the first connection (W19)."""
    assert replication.read_slot("reserving") is None
    replication.create_slot("reserving")
    try:
        found = replication.read_slot("reserving")
        assert found is not None
        assert found.restart_lsn is not None
        assert found.restart_lsn <= replication.identify().flush_lsn
    finally:
        replication.drop_slot("reserving")


def test_wal_that_the_server_has_not_is_refused_with_its_words(replication: ReplicationConnection) -> None:
    """The message is the server's own, and the error one of ours."""
    stream = replication.stream(None, Lsn(0x1000000 << 32), 1)
    with pytest.raises(SynapseOpsError) as refused:
        stream.read(DEADLINE_S)
    assert "ahead of the WAL flush position" in refused.value.detail


def test_a_server_that_refuses_the_password_is_a_config_error_without_the_password(
    postgres_server: PostgresServer,
) -> None:
    """No secret is in a message (common rule), and the operator reads what to correct."""
    with (
        pytest.raises(SynapseOpsError) as refused,
        connect_replication(postgres_server.conninfo(password="wrong-one"), application_name="test"),
    ):
        pass
    assert refused.value.exit_code == 2
    assert "wrong-one" not in refused.value.render()


def test_a_base_backup_streams_its_archive_and_its_manifest(replication: ReplicationConnection) -> None:
    """One stream holds all (W14): the archive opens as a tar, its manifest names its files, start and stop are told."""
    stream = base_backup(replication, BaseBackupOptions("test of a base backup", compression=None))
    parts: dict[str, io.BytesIO] = {}
    for message in stream:
        if isinstance(message, Archive):
            assert message.tablespace_path == ""
            current = parts.setdefault(message.name, io.BytesIO())
        elif isinstance(message, Manifest):
            current = parts.setdefault("manifest", io.BytesIO())
        elif isinstance(message, Data):
            current.write(message.data)

    assert stream.stop is not None
    assert stream.start.lsn < stream.stop.lsn
    assert set(parts) == {"base.tar", "manifest"}
    parts["base.tar"].seek(0)
    with tarfile.open(fileobj=parts["base.tar"]) as archive:
        names = archive.getnames()
    assert "backup_label" in names
    assert b'"Path": "PG_VERSION"' in parts["manifest"].getvalue()
    assert sum(one.size_kb or 0 for one in stream.tablespaces) > 1000
    assert replication.identify().timeline == stream.stop.timeline  # the connection can go on


def test_the_server_compresses_where_it_can(replication: ReplicationConnection) -> None:
    """Level 1 of zstd costs the server little, and the network less; a server without it says so (W14)."""
    try:
        stream = base_backup(replication, BaseBackupOptions("compressed"))
    except SynapseOpsError as refused:
        pytest.skip(f"this server has no zstd: {refused.detail}")
    data = b"".join(one.data for one in stream if isinstance(one, Data))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(data[:100000])
