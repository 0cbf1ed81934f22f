"""RDB snapshots of a real Redis into a real S3, and their proof by a server that loads them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyrage
import pytest

from synapse_ops.domain.backup.layout import HEARTBEAT
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.errors import ConfigError, Refused, SynapseOpsError, Unreachable
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.proving import ProofReport
from synapse_ops.operations.backup_kinds import RDBS
from synapse_ops.operations.redis.snapshot import RdbReport, identity_of, snapshot_redis
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.services.prober.protection import protection
from synapse_ops.systems.host.process_presence import presence_of_this_process
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.s3.store import StoreAccess
from tests.redis_servers import RealRedis, fill_every_type, make_redis_stack, running_redis

WRITER_TIMEOUT_S = 20.0
CUT_TIMEOUT_S = 30.0


def prove(stack: Stack, report: RdbReport, **more: Any) -> ProofReport:
    found = RDBS.prove(stack.redis_repository(), place=report.place, work_dir=stack.state_dir / "proof", **more)
    assert found is not None
    return found


@contextmanager
def writer(server: RealRedis) -> Iterator[None]:
    """Set new keys, change some and delete others, as fast as the server takes it, while the block runs."""
    stop, began = threading.Event(), threading.Event()

    def write() -> None:
        client, number = server.client(), 0
        while not stop.is_set():
            client.set(f"new:{number}", number)
            client.set(f"key:{number % 50}", number)
            client.delete(f"new:{number - 20}")
            number += 1
            began.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert began.wait(WRITER_TIMEOUT_S)
        yield
    finally:
        stop.set()
        thread.join(WRITER_TIMEOUT_S)


def fill(server: RealRedis, count: int, *, value: str = "v") -> None:
    server.client().mset({f"key:{number}": f"{value}{number}" for number in range(count)})


def test_an_idle_server_with_every_type_is_proven_key_for_key_in_every_database(
    stack: Stack, server: RealRedis
) -> None:
    """Without a writer there is no window: counts by database, and every key by type, value and time to live."""
    fill_every_type(server)

    report = snapshot_redis(stack)
    found = prove(stack, report)

    assert (report.record.window.is_idle, report.record.window.moved_keys) == (True, 0)
    assert (found.record.verdict, found.record.reason, found.record.differences) == (Verdict.PROVEN, "", ())
    assert found.record.rdb is not None
    assert found.record.rdb.keys == {0: 17, 3: 17, 15: 17} == report.record.window.keys_after
    assert (found.record.rdb.still_keys, found.record.rdb.by_value) == (51, 51)
    assert found.record.rdb.dataset_digest == server.client().execute_command("DEBUG", "DIGEST").decode()
    assert read_catalog(stack.redis_repository()).backups[0].proven_at is not None


def test_an_empty_server_is_proven_to_be_empty(stack: Stack, server: RealRedis) -> None:
    found = prove(stack, snapshot_redis(stack))

    assert found.record.rdb is not None
    assert (found.record.verdict, found.record.rdb.keys) == (Verdict.PROVEN, {})


def test_a_snapshot_under_a_stream_of_writes_is_proven_and_its_window_counted(stack: Stack, server: RealRedis) -> None:
    """Keys that stood still must be equal; those that moved are held to nothing, and are counted."""
    fill(server, 2000)

    with writer(server):
        report = snapshot_redis(stack)
    found = prove(stack, report)

    assert not report.record.window.is_idle
    assert report.record.window.moved_keys >= 40
    assert (found.record.verdict, found.record.differences) == (Verdict.PROVEN, ())
    assert found.record.rdb is not None
    assert found.record.rdb.still_keys >= 1900


def test_a_large_keyspace_is_compared_by_a_sample_and_its_counts(stack: Stack, server: RealRedis) -> None:
    """Over 50,000 keys a sample is read, and called so; an idle server's counts must be met exactly all the same."""
    fill(server, 60_000)

    report = snapshot_redis(stack)
    found = prove(stack, report)

    assert report.record.window.scope == "sample"
    assert 3000 < report.record.window.read_keys <= 5000
    assert any("compared by a sample" in warning for warning in report.warnings)
    assert found.is_proven


def test_reading_a_live_server_leaves_its_idle_times_alone(stack: Stack, server: RealRedis) -> None:
    """A daily snapshot does not keep the keys of a cache young, so that its cleanup still finds them idle."""
    server.client().set("cache:1", "x")
    deadline = time.monotonic() + WRITER_TIMEOUT_S
    while int(server.client().object("idletime", "cache:1") or 0) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    snapshot_redis(stack)

    assert int(server.client().object("idletime", "cache:1") or 0) >= 1


def test_keys_whose_time_ended_before_the_proof_are_counted_and_missed_by_nobody(
    stack: Stack, server: RealRedis
) -> None:
    """Redis does not load what has expired; a key that should still live is another matter."""
    fill(server, 20)
    server.client().set("long", "x", ex=3600)
    for life_ms in (400, 2_000, 10_000):  # until it outlives the snapshot, however busy the host is
        server.client().set("short", "x", px=life_ms)
        report = snapshot_redis(stack)
        if server.client().exists("short"):
            break
    deadline = time.monotonic() + WRITER_TIMEOUT_S
    while server.client().exists("short"):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    found = prove(stack, report)

    assert found.record.rdb is not None
    assert (found.record.verdict, found.record.rdb.expired_keys, found.record.rdb.keys) == (Verdict.PROVEN, 1, {0: 21})


def swap_dump(stack: Stack, into: RdbReport, source: RdbReport) -> None:
    """Put another snapshot's file into a backup, and make `backup.json` agree with it."""
    store = stack.redis_repository().store
    data = store.read_bytes(source.place.key("dump.rdb"))
    written = store.put_bytes(into.place.key("dump.rdb"), data)
    other = next(one for one in source.record.objects if one.name == "dump.rdb")
    objects = tuple(
        other.model_copy(update={"etag": written.etag}) if one.name == "dump.rdb" else one
        for one in into.record.objects
    )
    forged = into.record.model_copy(
        update={"objects": objects, "stored_bytes": sum(one.size_bytes for one in objects), "dumped_bytes": len(data)}
    )
    store.put_bytes(into.place.key("backup.json"), forged.to_json())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda client: client.set("key:7", "other"), "1 keys differ in their value"),
        (lambda client: client.delete("key:7"), "1 keys are missing"),
        (lambda client: client.set("key:9999", "x"), "1 keys are not on the server"),
        (lambda client: client.delete("key:7") and client.rpush("key:7", "v7"), "1 keys are of another type"),
        (lambda client: client.expire("key:7", 1000), "1 keys differ in their time to live"),
        (lambda client: client.move("key:7", 2), "keys by database are 49 in db 0, 1 in db 2"),
        (
            lambda client: client.function_load("#!lua name=f\nredis.register_function('f', function() return 2 end)"),
            "functions",
        ),
    ],
    ids=["value", "missing", "one more", "type", "time to live", "database", "functions"],
)
def test_a_copy_that_is_not_what_was_read_differs_even_when_every_checksum_agrees(
    stack: Stack, server: RealRedis, change: Any, word: str
) -> None:
    """The content is compared, not the bytes: another moment's file with forged documents is found out."""
    fill(server, 50)
    report = snapshot_redis(stack)
    change(server.client())
    swap_dump(stack, report, snapshot_redis(stack))

    found = prove(stack, report)

    assert found.record.verdict is Verdict.DIFFERS
    assert word in "\n".join(found.record.differences)
    assert "key:7" not in found.record.to_json().decode()  # a key may be a secret
    assert found.exit_code == 13


def test_one_changed_byte_is_named_with_both_digests_and_nothing_is_loaded(stack: Stack, server: RealRedis) -> None:
    fill(server, 50)
    report = snapshot_redis(stack)
    store = stack.redis_repository().store
    data = bytearray(store.read_bytes(report.place.key("dump.rdb")))
    data[len(data) // 2] ^= 1
    store.put_bytes(report.place.key("dump.rdb"), bytes(data))

    found = prove(stack, report)

    assert found.record.verdict is Verdict.UNPROVEN
    assert "ChecksumMismatch" in found.record.reason
    assert found.exit_code == 13


def test_a_file_that_no_server_loads_is_unproven_with_the_servers_own_reason(stack: Stack, server: RealRedis) -> None:
    """A format from the future, a checksum of Redis's own that does not match: no pass, and no key in the reason."""
    fill(server, 50)
    good = snapshot_redis(stack)
    bad = snapshot_redis(stack)
    store = stack.redis_repository().store
    data = bytearray(store.read_bytes(bad.place.key("dump.rdb")))
    data[5:9] = b"0999"
    record = bad.record
    written = store.put_bytes(bad.place.key("dump.rdb"), bytes(data))
    objects = tuple(
        one.model_copy(update={"sha256": sha256(data).hexdigest(), "etag": written.etag})
        if one.name == "dump.rdb"
        else one
        for one in record.objects
    )
    store.put_bytes(bad.place.key("backup.json"), record.model_copy(update={"objects": objects}).to_json())

    found = prove(stack, bad)

    assert found.record.verdict is Verdict.UNPROVEN
    assert "RDB format version 999" in found.record.reason
    assert prove(stack, good).is_proven
    assert list((stack.state_dir / "proof").glob("throwaway-*")) == []


def test_a_proof_that_has_no_time_left_is_unproven(stack: Stack, server: RealRedis) -> None:
    fill(server, 50)

    found = prove(stack, snapshot_redis(stack), timeout_s=0.001)

    assert found.record.verdict is Verdict.UNPROVEN
    assert "DeadlineExceeded" in found.record.reason


def test_an_encrypted_snapshot_is_proven_with_its_key_and_not_without(
    tmp_path: Path, server: RealRedis, bucket_url: str, object_store_access: StoreAccess
) -> None:
    key = pyrage.x25519.Identity.generate()
    stack = make_redis_stack(tmp_path, server, bucket_url, object_store_access, recipients=(str(key.to_public()),))
    fill(server, 50, value="in-the-clear-")

    report = snapshot_redis(stack)

    store = stack.redis_repository().store
    stored = b"".join(store.read_bytes(report.place.key(one.name)) for one in report.record.objects)
    assert b"in-the-clear-" not in stored
    assert prove(stack, report).record.verdict is Verdict.NOT_ATTEMPTED
    assert prove(stack, report, identities=(str(key),)).is_proven


def test_a_server_killed_while_it_sends_leaves_no_backup(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Half a file is never taken for one, though the part that came could be read."""
    with running_redis(tmp_path, "--rdb-key-save-delay", "1000") as slow:  # a millisecond a key: 5 s for all
        stack = make_redis_stack(tmp_path, slow, bucket_url, object_store_access)
        fill(slow, 5000, value="v" * 500)
        errors: list[SynapseOpsError] = []

        def take() -> None:
            try:
                snapshot_redis(stack)
            except SynapseOpsError as error:
                errors.append(error)

        thread = threading.Thread(target=take)
        thread.start()
        deadline = time.monotonic() + CUT_TIMEOUT_S
        while not slow.client().info("persistence")["rdb_bgsave_in_progress"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        slow.process.kill()
        thread.join(CUT_TIMEOUT_S)

        assert [type(error) for error in errors] == [Unreachable]
        catalog = read_catalog(stack.redis_repository())
        assert (catalog.backups, len(catalog.left_overs)) == ((), 1)


def test_it_is_off_unless_the_spec_turns_it_on(tmp_path: Path) -> None:
    """A cache needs no backup, and nobody finds one that he did not ask for."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text("name: test\n")

    with pytest.raises(ConfigError, match=r"backup\.redis is not set"):
        snapshot_redis(open_stack(spec, tmp_path))


def test_a_node_of_a_cluster_is_refused_before_anything_is_written(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """It holds a part of the keys; what looks like a whole backup would not be one."""
    with running_redis(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(*free_ports(1))) as node:
        stack = make_redis_stack(tmp_path, node, bucket_url, object_store_access)

        with pytest.raises(Refused, match="node of a cluster"):
            snapshot_redis(stack)

        assert read_catalog(stack.redis_repository()).object_count == 0


def test_localhost_is_another_server_on_every_host_and_a_name_is_one_everywhere() -> None:
    """Two hosts that call their own server localhost never write under one prefix."""
    here = identity_of("localhost:6379")

    assert here != identity_of("redis.example:6379")
    assert here == identity_of("localhost:6379")
    assert identity_of("redis.example:6379").generation == "bc72bd70"


def test_the_prober_tells_the_moments_of_the_newest_snapshot_and_proof(stack: Stack, server: RealRedis) -> None:
    """Alerts compare them with the schedule; a repository that nobody read would look as if it needed none."""
    fill(server, 10)
    report = snapshot_redis(stack)
    taken = protection(stack.loaded.path, stack.state_dir)["redis"]["subjects"][report.place.subject]

    prove(stack, report)
    proven = protection(stack.loaded.path, stack.state_dir)["redis"]["subjects"][report.place.subject]

    assert taken["backup_at"] == proven["backup_at"] is not None
    assert taken["proven_at"] is None
    assert proven["proven_at"] > taken["backup_at"]


def test_the_upload_of_a_killed_snapshot_is_aborted_by_the_next_one(stack: Stack, server: RealRedis) -> None:
    """As for every kind: the writer of an upload died on this host, so that nobody pays for it until the grace ends."""
    fill(server, 10)
    first = snapshot_redis(stack)
    store = stack.redis_repository().store
    dead = replace(first.place, backup_id=f"{first.place.backup_id[:-6]}ffffff")
    presence = presence_of_this_process() | {"pid": 2**22 + 1}  # beyond what Linux gives out: there is no such process
    store.put_bytes(dead.key(HEARTBEAT), json.dumps(presence).encode())
    store.begin_upload(dead.key("dump.rdb"))

    snapshot_redis(stack)

    assert list(store.list_uploads()) == []
