"""kill -9 in the middle of a multipart upload, on a real store: it is no backup, and a later plan removes the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from synapse_ops.domain.backup.layout import HEARTBEAT
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.expire import apply_expiry, make_expiry_plan
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.backup.test_expire import LaterStore
from tests.operations.expiry import DAY, POLICY, ids
from tests.stored_backups import place_of, store_backup, store_proof

CHILD_TIMEOUT_S = 120
GRACE = timedelta(hours=25)
KILLED = """
import os, signal, sys
from synapse_ops.domain.backup.layout import parse_key
from synapse_ops.operations.backup.heartbeat import keep_heartbeat
from synapse_ops.operations.backup.writer import BackupWriter
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
url, endpoint, access, secret, heartbeat, point = sys.argv[1:]
MIB = 1 << 20
left = 20 * MIB  # two parts are on their way, the third is not full
def die(where):
    if where == point:
        os.kill(os.getpid(), signal.SIGKILL)
class Source:
    def read(self, size):
        global left
        if left <= 0:
            die("parts")
            return b""
        left -= size
        return b"x" * size
store = ObjectStore(url, StoreAccess(endpoint=endpoint, access_key=access, secret_key=secret))
with keep_heartbeat(store, heartbeat, body={}):
    place = parse_key(heartbeat).place
    BackupWriter(store, place, ()).write_stream("database.dump", Source(), before_complete=lambda: die("end"))
    die("whole")
"""


@pytest.mark.parametrize("point", ["parts", "end", "whole"])
def test_a_backup_that_is_killed_in_its_upload_is_none_and_a_later_plan_removes_it(
    point: str, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """With parts under way, with all of them sent, and with the object there: what was proven before stays."""
    store = LaterStore(bucket_url, object_store_access)
    repository = Repository(store)
    now = store.server_time()
    proven = store_backup(store, now - 3 * DAY)
    store_proof(store, proven, proven.record.finished_at + timedelta(minutes=5))
    killed = place_of(now)

    access = object_store_access
    arguments = [bucket_url, access.endpoint or "", access.access_key or "", access.secret_key or ""]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, killed.key(HEARTBEAT), point], timeout=CHILD_TIMEOUT_S, check=False
    )

    assert child.returncode == -signal.SIGKILL
    assert [upload.key for upload in store.list_uploads()] == [killed.key("database.dump")] * (point != "whole")
    assert ids(repository) == [proven.place.backup_id]
    assert [row.place for row in read_catalog(repository).left_overs] == [killed]
    assert apply_expiry(repository, make_expiry_plan(repository, POLICY, now).digest, now).removed == ()  # its grace

    store.later = GRACE
    plan = make_expiry_plan(repository, POLICY, now + GRACE)
    apply_expiry(repository, plan.digest, now + GRACE)

    assert (plan.totals.left_overs, plan.totals.uploads) == (1, 0 if point == "whole" else 1)
    assert {entry.place for entry in plan.entries} == {proven.place, killed}
    assert not list(store.list_uploads())
    assert not list(store.list_objects(killed.prefix))
    assert [entry.place for entry in read_catalog(repository).backups if entry.proven_at] == [proven.place]
