"""Who was killed in mid-upload on this host leaves nothing that is paid for: the next writer aborts just that."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.backup.layout import HEARTBEAT, BackupPlace
from synapse_ops.operations.backup.dead_uploads import abort_uploads_of_the_dead
from synapse_ops.operations.backup.heartbeat import keep_heartbeat
from synapse_ops.systems.host.process_presence import presence_of_this_process
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import place_of

NOW = datetime(2026, 11, 28, tzinfo=UTC)
READY_TIMEOUT_S = 60
WRITER = """
import sys
from synapse_ops.domain.backup.layout import HEARTBEAT
from synapse_ops.operations.backup.heartbeat import keep_heartbeat
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
url, endpoint, access, secret, heartbeat, data = sys.argv[1:]
store = ObjectStore(url, StoreAccess(endpoint=endpoint, access_key=access, secret_key=secret))
with keep_heartbeat(store, heartbeat, body={}):
    store.upload_part(data, store.begin_upload(data), 1, b"x" * (6 << 20))
    print("uploading", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(bucket_url: str, object_store_access: StoreAccess) -> ObjectStore:
    return ObjectStore(bucket_url, object_store_access)


def begin(store: ObjectStore, access: StoreAccess, place: BackupPlace) -> subprocess.Popen[str]:
    """Start a writer that is in the middle of an upload when this returns."""
    arguments = [store.url, access.endpoint or "", access.access_key or "", access.secret_key or ""]
    arguments += [place.key(HEARTBEAT), place.key("database.dump")]
    argv = [sys.executable, "-c", WRITER, *arguments]
    writer = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "uploading\n"
    return writer


def under_way(store: ObjectStore) -> list[str]:
    return [upload.key for upload in store.list_uploads()]


def test_the_upload_of_a_killed_writer_is_aborted_and_that_of_a_living_one_goes_on(
    store: ObjectStore, object_store_access: StoreAccess
) -> None:
    """A heartbeat that is seconds old protects a process that lives, and no dead one of this host."""
    dead, living = (place_of(NOW + timedelta(minutes=minute)) for minute in (0, 1))
    killed, writer = begin(store, object_store_access, dead), begin(store, object_store_access, living)
    killed.kill()
    killed.communicate(timeout=READY_TIMEOUT_S)

    try:
        assert abort_uploads_of_the_dead(store, place_of(NOW + timedelta(hours=1))) == 1
        assert under_way(store) == [living.key("database.dump")]
    finally:
        writer.communicate(timeout=READY_TIMEOUT_S)


@pytest.mark.parametrize("heartbeat", ["none", "torn", "of another host", "of another boot"])
def test_what_this_host_cannot_judge_waits_for_the_grace(store: ObjectStore, heartbeat: str) -> None:
    """No heartbeat, one that cannot be read, another host's or an earlier boot's: none of them says that it is dead."""
    place = place_of(NOW)
    store.begin_upload(place.key("database.dump"))
    presence = presence_of_this_process() | {"pid": 2**22 + 1}  # beyond what Linux gives out: there is no such process
    if heartbeat == "torn":
        store.put_bytes(place.key(HEARTBEAT), b'{"host": ')
    elif heartbeat != "none":
        field = "host" if heartbeat == "of another host" else "boot_id"
        store.put_bytes(place.key(HEARTBEAT), json.dumps(presence | {field: "elsewhere"}).encode())

    assert abort_uploads_of_the_dead(store, place_of(NOW + timedelta(hours=1))) == 0
    assert under_way(store) == [place.key("database.dump")]


def test_uploads_of_another_database_are_left_to_its_own_writer(store: ObjectStore) -> None:
    """One writer cleans up after its own subject; an upload that is nobody's form is nobody's business."""
    other = place_of(NOW, database="orders")
    with keep_heartbeat(store, other.key(HEARTBEAT), body={"pid": 2**22 + 1}):
        pass
    store.begin_upload(other.key("database.dump"))
    store.begin_upload("somebody/elses/object")

    assert abort_uploads_of_the_dead(store, place_of(NOW)) == 0
    assert len(under_way(store)) == 2
