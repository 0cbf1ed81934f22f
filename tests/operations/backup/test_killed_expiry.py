"""kill -9 in the middle of an expiry's deletions, on a real store: what is left reads well, and the rest goes later."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from synapse_ops.domain.backup.layout import BACKUP
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.expire import apply_expiry, make_expiry_plan
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.backup.test_expire import LaterStore
from tests.operations.expiry import DAY, POLICY, ids
from tests.stored_backups import store_backup, store_proof

CHILD_TIMEOUT_S = 120
KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from synapse_ops.operations.backup.expire import apply_expiry
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
url, endpoint, access, secret, digest, last = sys.argv[1:]
calls = 0
class Store(ObjectStore):
    def delete(self, keys):
        global calls
        calls += "/dump/" in keys[0]  # not what asks for the features of a store
        if calls < int(last):
            return super().delete(keys)
        super().delete(keys[: len(keys) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
store = Store(url, StoreAccess(endpoint=endpoint, access_key=access, secret_key=secret))
apply_expiry(Repository(store), digest, datetime.now(UTC))
"""


@pytest.mark.parametrize("call", [1, 2, 3], ids=["backup.json", "data", "markers"])
def test_an_expiry_that_is_killed_leaves_backups_or_none_and_the_next_one_goes_on(
    call: int, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """Half of one step is deleted. A backup is whole or is none; the lease of the dead holds nobody up."""
    store = LaterStore(bucket_url, object_store_access)
    repository = Repository(store)
    now = store.server_time()
    backups = [store_backup(store, now - age * DAY) for age in (50, 40, 30, 20, 1)]
    for backup in backups:
        store_proof(store, backup, backup.record.finished_at + timedelta(minutes=5))
    kept = [backup.place.backup_id for backup in reversed(backups[3:])]
    plan = make_expiry_plan(repository, POLICY, now)

    access = object_store_access
    arguments = [bucket_url, access.endpoint or "", access.access_key or "", access.secret_key or ""]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, plan.digest, str(call)], timeout=CHILD_TIMEOUT_S, check=False
    )

    catalog = read_catalog(repository)
    assert child.returncode == -signal.SIGKILL
    assert [entry.place.backup_id for entry in catalog.backups if entry.proven_at][:2] == kept
    assert all(entry.proven_at for entry in catalog.backups)  # none lacks a byte
    assert len(catalog.left_overs) == {1: 1, 2: 3, 3: 2}[call]  # half of the markers were all of one backup's
    assert not any(store.head(row.place.key(BACKUP)) for row in catalog.left_overs)

    again = apply_expiry(repository, plan.digest, now)
    assert ids(repository) == kept
    assert len(again.removed) == (2 if call == 1 else 0)  # what lost its backup.json waits for its grace
    store.later = timedelta(hours=25)
    rest = make_expiry_plan(repository, POLICY, now + store.later)
    apply_expiry(repository, rest.digest, now + store.later)
    assert ids(repository) == kept
    assert read_catalog(repository).left_overs == ()
    assert not any(list(store.list_objects(backup.place.prefix)) for backup in backups[:3])
