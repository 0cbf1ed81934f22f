"""The contract that an S3 store must keep with us, tried on real ones: SeaweedFS, and versitygw where it is on PATH."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.loaders import JSONFileLoader

from synapse_ops.errors import ConfigError, IntegrityError, ObjectMissing, SynapseOpsError, Unreachable
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.s3.features import sha256_base64
from synapse_ops.systems.s3.store import ConditionFailed, ObjectStore, StoreAccess
from synapse_ops.systems.s3.streams import PART_BYTES
from tests.faulty_store import faulty_store

MIB = 1024 * 1024
ODD_KEYS = ["a b+c", "percent%41/%2e%2e", "quotes'\"&<>", "ümläut/日本語/🐘", "tilde~*!()", "a-b", "a/b", "a0"]


@pytest.fixture(params=["seaweedfs", "versitygw"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An empty prefix on each store in turn."""
    access: StoreAccess = request.getfixturevalue(f"{request.param}_access")
    made = ObjectStore(f"s3://contract/{secrets.token_hex(8)}/some/prefix/", access)
    made.create_bucket()
    return made


def test_what_was_put_is_read_back_with_its_size_and_digest(store: ObjectStore) -> None:
    """A receipt names size, ETag and the sha256 of what was sent; the store gives the same bytes."""
    written = store.put_bytes("a/b.json", b"{}\n")

    assert store.read_bytes("a/b.json") == b"{}\n"
    assert (written.size_bytes, written.sha256) == (3, hashlib.sha256(b"{}\n").hexdigest())
    assert [(row.key, row.size_bytes, row.etag) for row in store.list_objects()] == [("a/b.json", 3, written.etag)]
    head = store.head("a/b.json")
    assert head is not None
    assert (head.size_bytes, head.etag) == (3, written.etag)


def test_what_is_missing_is_said_so(store: ObjectStore) -> None:
    """Absent is a result of `head` and `read_with_etag`, and ObjectMissing of everything that needs the bytes."""
    assert store.head("nothing") is None
    assert store.read_with_etag("nothing") is None
    for read in (store.read_bytes, store.open_reader):
        with pytest.raises(ObjectMissing, match=r"some/prefix/nothing"):
            read("nothing")


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 5])
def test_a_streamed_object_is_the_bytes_that_were_written(store: ObjectStore, size: int) -> None:
    """Around every part boundary: the object, its size and its sha256 are those of the stream."""
    data = os.urandom(size)

    with store.open_writer("streamed") as writer:
        for start in range(0, size, 1_000_003):
            writer.write(data[start : start + 1_000_003])
        written = writer.complete()

    assert (written.size_bytes, written.sha256) == (size, hashlib.sha256(data).hexdigest())
    with store.open_reader("streamed") as reader:
        assert reader.read() == data
        assert (reader.sha256, reader.read_bytes_total) == (written.sha256, size)
    [row] = store.list_objects()
    assert (row.size_bytes, row.etag) == (size, written.etag)


def test_nothing_is_visible_before_a_stream_is_completed(store: ObjectStore) -> None:
    """Until `complete` there is no object; what is under way is listed as an upload."""
    with store.open_writer("stream") as writer:
        writer.write(os.urandom(PART_BYTES + 1))

        assert store.head("stream") is None
        assert [upload.key for upload in store.list_uploads()] == ["stream"]


def test_a_failed_stream_leaves_neither_object_nor_upload_and_spares_what_was_there(store: ObjectStore) -> None:
    """An error between the parts aborts the upload: overwriting is all or nothing, and nothing dangles."""
    store.put_bytes("old", b"before")

    for key in ("new", "old"):
        with pytest.raises(ZeroDivisionError):
            _write_and_fail(store, key)

    assert [row.key for row in store.list_objects()] == ["old"]
    assert store.read_bytes("old") == b"before"
    assert list(store.list_uploads()) == []


def _write_and_fail(store: ObjectStore, key: str) -> None:
    with store.open_writer(key) as writer:
        writer.write(os.urandom(PART_BYTES + 1))
        raise ZeroDivisionError


def test_uploads_are_listed_by_prefix_and_aborted_once_or_twice(store: ObjectStore) -> None:
    """A dangling upload has a name and an age; aborting one that is already gone is the outcome wanted."""
    wanted = store.begin_upload("a/data")
    store.begin_upload("b/data")

    [upload] = store.list_uploads("a/")

    assert (upload.key, upload.upload_id) == ("a/data", wanted)
    assert abs(upload.initiated_at - store.server_time()) < timedelta(minutes=1)
    store.abort_upload(upload)
    store.abort_upload(upload)
    assert [row.key for row in store.list_uploads()] == ["b/data"]


def test_a_read_is_of_one_version_only(store: ObjectStore) -> None:
    """What began with one version never continues with another: swapped data is an error, never a mixture."""
    first = store.put_bytes("x", b"0123456789")
    assert store.read_range("x", 3, 4, first.etag) == b"3456"
    reader = store.open_reader("x")

    store.put_bytes("x", b"abcdefghij")

    with pytest.raises(ConditionFailed):
        store.read_range("x", 3, 4, first.etag)
    with pytest.raises(ConditionFailed):
        store.read_bytes("x", etag=first.etag)
    with reader, pytest.raises(ConditionFailed):
        reader.read()


def test_a_range_past_the_end_is_an_error(store: ObjectStore) -> None:
    """A short answer is not silently taken for the bytes asked for."""
    written = store.put_bytes("x", b"0123456789")

    with pytest.raises(IntegrityError, match="gave 2 bytes"):
        store.read_range("x", 8, 5, written.etag)


def test_an_object_larger_than_the_limit_is_not_read(store: ObjectStore) -> None:
    """A document that is not ours cannot fill the memory."""
    store.put_bytes("x", b"0" * 1000)

    with pytest.raises(IntegrityError, match="has 1000 bytes, limit 999"):
        store.read_bytes("x", max_bytes=999)


def test_conditional_writes_are_found_by_the_probe_and_hold(store: ObjectStore) -> None:
    """One creates, one replaces, everyone else loses; the probe leaves nothing behind."""
    assert store.features.conditional_writes
    assert list(store.list_objects()) == []

    created = store.put_bytes("lease", b"1", if_none_match=True)
    with pytest.raises(ConditionFailed):
        store.put_bytes("lease", b"2", if_none_match=True)
    replaced = store.put_bytes("lease", b"3", if_match=created.etag)
    with pytest.raises(ConditionFailed):
        store.put_bytes("lease", b"4", if_match=created.etag)

    assert store.read_with_etag("lease") == (b"3", replaced.etag)


def test_a_conditional_write_over_a_removed_key_loses(store: ObjectStore) -> None:
    """Stores answer 404 or 412 here: both mean that somebody else was faster."""
    created = store.put_bytes("lease", b"1")
    store.delete(["lease"])

    with pytest.raises(ConditionFailed):
        store.put_bytes("lease", b"2", if_match=created.etag)
    assert store.head("lease") is None


def test_one_of_many_racing_creators_wins(store: ObjectStore) -> None:
    """A lease has one owner, whatever the timing."""

    def create(number: int) -> bool:
        try:
            store.put_bytes("lease", str(number).encode(), if_none_match=True)
        except ConditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


def test_a_store_that_keeps_checksums_is_a_witness_for_every_part(store: ObjectStore) -> None:
    """What it answers for an upload of three parts is made of the bytes; what is not as announced is refused."""
    chunks = [os.urandom(6 * MIB), os.urandom(6 * MIB), b"the rest"]
    with store.open_writer("parts") as writer:
        for chunk in chunks:
            writer.write(chunk)
        written = writer.complete()

    assert bool(store.features.missing()) == (not store.features.keeps_checksums)
    if store.features.keeps_checksums:
        whole = b"".join(chunks)
        parts = [hashlib.sha256(whole[at : at + PART_BYTES]).digest() for at in range(0, len(whole), PART_BYTES)]
        of_parts = base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode()
        assert store.kept_checksum("parts") == written.checksum == f"{of_parts}-{len(parts)}"
        with pytest.raises(SynapseOpsError):
            store.put_bytes("other", b"these bytes", checksum=sha256_base64(b"other bytes"))
    else:
        assert written.checksum == ""


def test_odd_keys_come_back_as_they_were_written(store: ObjectStore) -> None:
    """Listing, reading and deleting agree on every key that a name may lead to; stores sort in their own ways."""
    for key in ODD_KEYS:
        store.put_bytes(key, key.encode())

    assert sorted(row.key for row in store.list_objects()) == sorted(ODD_KEYS)
    for key in ODD_KEYS:
        assert store.read_bytes(key) == key.encode()
    assert store.delete(ODD_KEYS) == {}
    assert list(store.list_objects()) == []


def test_a_prefix_is_a_wall(store: ObjectStore) -> None:
    """Two repositories in one bucket, one's prefix the beginning of the other's, never see each other."""
    neighbour = ObjectStore(store.url.rstrip("/") + "-2/", store.access)
    store.put_bytes("x", b"ours")
    neighbour.put_bytes("x", b"theirs")
    neighbour.begin_upload("y")

    assert [row.key for row in store.list_objects()] == ["x"]
    assert list(store.list_uploads()) == []
    assert store.list_prefixes() == []
    store.delete(["x"])
    assert neighbour.read_bytes("x") == b"theirs"


def test_the_next_segments_of_a_prefix_are_listed(store: ObjectStore) -> None:
    """Folders of one level, sorted, without what lies in them and without plain objects."""
    for key in ("b/1/x", "b/2/x", "a/x", "top"):
        store.put_bytes(key, b"")

    assert store.list_prefixes() == ["a", "b"]
    assert store.list_prefixes("b/") == ["1", "2"]


def test_a_listing_of_more_than_a_page_is_complete_and_so_is_its_deletion(store: ObjectStore) -> None:
    """Pages hold 1000 keys and so do delete requests: 1003 keys cross both limits."""
    keys = [f"many/{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put_bytes(key, b""), keys))

    assert sorted(row.key for row in store.list_objects("many/")) == keys
    assert store.delete([*keys, "many/never-existed"]) == {}
    assert list(store.list_objects()) == []


def test_metadata_is_read_without_the_object(store: ObjectStore) -> None:
    """The digest of encrypted WAL lies there: a receiver compares without the key that opens it (W9)."""
    store.put_bytes("with", b"", metadata={"synapse-plain": "0a1b"})
    store.put_bytes("without", b"")

    assert store.read_metadata("with") == {"synapse-plain": "0a1b"}
    assert store.read_metadata("without") == {}


def test_deleting_nothing_is_nothing(store: ObjectStore) -> None:
    """An empty plan sends no request that a store might refuse."""
    assert store.delete([]) == {}


def test_clock_and_listing_times_are_aware_and_agree(store: ObjectStore) -> None:
    """Ages are differences of aware times of one clock: the store's."""
    store.put_bytes("x", b"")

    [row] = store.list_objects()

    assert row.modified_at.utcoffset() == timedelta(0)
    assert abs(row.modified_at - store.server_time()) < timedelta(minutes=1)
    assert abs(store.server_time() - datetime.now(UTC)) < timedelta(minutes=1)


def test_creating_a_bucket_twice_is_fine(store: ObjectStore) -> None:
    """Setting up is safe to repeat."""
    store.create_bucket()


def test_a_missing_bucket_is_a_matter_of_configuration(store: ObjectStore) -> None:
    """Not "missing object": nothing under it could ever exist."""
    elsewhere = ObjectStore(f"s3://absent-{secrets.token_hex(8)}/", store.access)

    for act in (lambda: list(elsewhere.list_objects()), lambda: elsewhere.put_bytes("x", b""), elsewhere.server_time):
        with pytest.raises(ConfigError, match="absent-") as caught:
            act()
        assert "bucket" in caught.value.hint.lower()


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_a_wrong_key_is_refused_and_no_secret_is_told(store: ObjectStore, wrong: str) -> None:
    """Refusals name the repository and the store's code, never a secret."""
    secret = f"wrong-{secrets.token_hex(16)}"
    intruder = ObjectStore(store.url, replace(store.access, **{wrong: secret}))

    with pytest.raises(ConfigError, match="refused access") as caught:
        list(intruder.list_objects())

    told = caught.value.render() + repr(intruder) + repr(intruder.access)
    assert str(store.access.secret_key) not in told
    if wrong == "secret_key":
        assert secret not in told


def test_a_store_that_is_down_may_come_back(object_store_access: StoreAccess) -> None:
    """Nobody listens: Unreachable, which is retryable, with the address to look at."""
    [port] = free_ports(1)
    down = ObjectStore("s3://bucket/", replace(object_store_access, endpoint=f"http://127.0.0.1:{port}"))

    with pytest.raises(Unreachable, match="could not reach") as caught:
        down.head("x")

    assert caught.value.retryable
    assert str(port) in caught.value.detail


def test_a_listed_object_is_read_in_that_version_or_with_the_usual_error(store: ObjectStore) -> None:
    """Every key, and whatever goes wrong is an error as `read_bytes` has it."""
    for key in ODD_KEYS:
        written = store.put_bytes(key, key.encode())
        assert store.read_listed(key, written.size_bytes, written.etag, max_bytes=100) == key.encode()

    with pytest.raises(ConditionFailed):
        store.read_listed("a0", 2, "0" * 32, max_bytes=100)
    with pytest.raises(ObjectMissing):
        store.read_listed("nothing", 2, "0" * 32, max_bytes=100)
    with pytest.raises(IntegrityError, match="limit 1"):
        store.read_listed("a0", 2, written.etag, max_bytes=1)


class Elsewhere(ObjectStore):
    """The real store, whose direct reads go to another server."""

    other = ""

    @property
    def endpoint_url(self) -> str:
        return self.other


@contextmanager
def elsewhere(store: ObjectStore, answer: bytes) -> Iterator[tuple[Elsewhere, list[str]]]:
    """Yield a store whose direct reads get this answer, and their paths; each connection ends after it, unasked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.wfile.write(answer)

    found = Elsewhere(store.url, store.access)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.other = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found, asked
        server.shutdown()


def test_listed_objects_are_read_without_the_clients_own_get(store: ObjectStore) -> None:
    """A direct read is one request; a connection that the store ends unasked costs no error."""
    written = store.put_bytes("x", b"bytes")
    with elsewhere(store, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort") as (found, asked):
        read = [found.read_listed("x", 5, written.etag, max_bytes=100) for _ in range(4)]

    assert read[0] == b"short"
    assert set(read) <= {b"short", b"bytes"}
    assert len(asked) >= read.count(b"short")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_store_that_cannot_be_read_directly_is_asked_so_once(store: ObjectStore, answer: bytes) -> None:
    """A redirect, a proxy's page or a failure costs one request, not the catalog."""
    written = store.put_bytes("x", b"bytes")
    with elsewhere(store, answer) as (found, asked):
        read = [found.read_listed("x", 5, written.etag, max_bytes=100) for _ in range(3)]

    assert read == [b"bytes"] * 3
    assert len(asked) == 1


def test_a_direct_read_that_nothing_answers_is_done_by_the_client(store: ObjectStore) -> None:
    """Half an answer too: only the whole object of the listed size is taken."""
    written = store.put_bytes("x", b"bytes")
    nowhere = Elsewhere(store.url, store.access)
    nowhere.other = f"http://127.0.0.1:{free_ports(1)[0]}"
    with elsewhere(store, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsh") as (half, _):
        read = [one.read_listed("x", 5, written.etag, max_bytes=100) for one in (nowhere, half)]

    assert read == [b"bytes", b"bytes"]


def test_a_second_client_of_a_process_reads_no_model_again(
    seaweedfs_access: StoreAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's description of S3 is a megabyte of JSON, and reading it was nine tenths of a new client's time."""
    ObjectStore("s3://tests/", seaweedfs_access).create_bucket()
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda *_: pytest.fail("a model is read again"))

    ObjectStore("s3://tests/", seaweedfs_access).create_bucket()


@pytest.mark.parametrize("fault", ["answer lost", "error body", "throttled"])
@pytest.mark.parametrize("forgets", [False, True], ids=["remembers the upload", "forgets it"])
def test_an_upload_whose_end_was_not_told_is_known_again(
    seaweedfs_access: StoreAccess, bucket_url: str, fault: str, forgets: bool
) -> None:
    """The client repeats it, and a store may have no such upload any more: the object says whether it is ours."""
    with faulty_store(seaweedfs_access) as faulty:
        faulty.fault = fault

        def is_end(method: str, path: str) -> bool:
            if method != "POST" or "uploadId=" not in path:
                return False
            if faulty.befallen and forgets:
                faulty.fault = "no upload"
            return not faulty.befallen or forgets

        faulty.hits = is_end
        data = secrets.token_bytes(9 << 20)
        with ObjectStore(bucket_url, faulty.access).open_writer("large") as writer:
            writer.write(data)
            if forgets and fault != "answer lost":  # it did not do what it was asked either
                with pytest.raises(ObjectMissing):
                    writer.complete()
                return
            written = writer.complete()
        assert faulty.befallen == 1 + forgets

    found = ObjectStore(bucket_url, seaweedfs_access).head("large")
    assert found is not None
    assert (found.size_bytes, found.etag) == (len(data), written.etag)
