"""The fake store of other tests behaves as the real client on SeaweedFS, in everything those tests rely on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.errors import ObjectMissing
from synapse_ops.systems.s3.store import ConditionFailed, ObjectStore, StoreAccess
from tests.memory_store import MemoryStore

Store = ObjectStore | MemoryStore


@pytest.fixture(params=["memory", "seaweedfs"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore(datetime.now(UTC).replace(microsecond=0))
    access: StoreAccess = request.getfixturevalue("object_store_access")
    return ObjectStore(request.getfixturevalue("bucket_url"), access)


def test_what_is_put_is_listed_headed_and_read(store: Store) -> None:
    """Same size, same ETag in every answer."""
    written = store.put_bytes("a/b.json", b"12345")

    [listed] = store.list_objects("a/")
    assert listed == store.head("a/b.json")
    assert (listed.key, listed.size_bytes, listed.etag) == ("a/b.json", 5, written.etag)
    assert store.read_bytes("a/b.json", etag=written.etag) == b"12345"
    assert store.read_with_etag("a/b.json") == (b"12345", written.etag)


def test_a_missing_key_is_none_or_object_missing(store: Store) -> None:
    """head and read_with_etag answer None; read_bytes raises."""
    assert store.head("none") is None
    assert store.read_with_etag("none") is None
    with pytest.raises(ObjectMissing):
        store.read_bytes("none")


def test_conditions_are_honoured(store: Store) -> None:
    """If-None-Match, If-Match on the wrong version, on the right one, and on a missing key."""
    first = store.put_bytes("key", b"1", if_none_match=True)
    with pytest.raises(ConditionFailed):
        store.put_bytes("key", b"2", if_none_match=True)
    second = store.put_bytes("key", b"2", if_match=first.etag)
    with pytest.raises(ConditionFailed):
        store.put_bytes("key", b"3", if_match=first.etag)
    with pytest.raises(ConditionFailed):
        store.put_bytes("missing", b"3", if_match=second.etag)
    with pytest.raises(ConditionFailed):
        store.read_bytes("key", etag=first.etag)

    assert store.read_bytes("key") == b"2"
    assert store.features.conditional_writes


def test_prefixes_are_the_next_segments(store: Store) -> None:
    """Objects directly below are none."""
    for key in ("a/x/1", "a/x/2", "a/y/1", "a/plain", "b/1"):
        store.put_bytes(key, b"")

    assert store.list_prefixes() == ["a", "b"]
    assert store.list_prefixes("a/") == ["x", "y"]
    objects, folders = store.list_level("a/")
    assert ([row.key for row in objects], folders) == (["a/plain"], ["x", "y"])


def test_deleting_takes_what_is_named_and_bears_what_is_gone(store: Store) -> None:
    """No failure is reported for a key that does not exist."""
    for key in ("a/1", "a/2", "a/3"):
        store.put_bytes(key, b"")

    assert store.delete(["a/1", "a/3", "a/none"]) == {}
    assert [row.key for row in store.list_objects()] == ["a/2"]


def test_an_upload_is_listed_until_it_is_aborted(store: Store) -> None:
    """It makes no object, and aborting twice is fine."""
    upload_id = store.begin_upload("a/big")

    [upload] = store.list_uploads()
    assert (upload.key, upload.upload_id) == ("a/big", upload_id)
    assert not list(store.list_objects())
    store.abort_upload(upload)
    store.abort_upload(upload)
    assert not list(store.list_uploads())


def test_the_clock_is_aware_and_objects_carry_it(store: Store) -> None:
    """LastModified and Date are one clock, to whole seconds."""
    store.put_bytes("key", b"")
    found = store.head("key")
    assert found is not None

    assert abs(store.server_time() - found.modified_at) <= timedelta(seconds=5)
