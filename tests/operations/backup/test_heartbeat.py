"""A heartbeat beats while work goes on, tells when it is lost, and a hold is gone with its holder."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from synapse_ops.errors import DeadlineExceeded, SynapseOpsError, Unproven
from synapse_ops.operations.backup.heartbeat import LOST_AFTER_S, Heartbeat, keep_heartbeat
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess, WrittenObject

BEAT_DEADLINE_S = 20.0
TOLD_WITHIN_S = 2.0  # far over one small write


@pytest.fixture
def store(bucket_url: str, object_store_access: StoreAccess) -> ObjectStore:
    return ObjectStore(bucket_url, object_store_access)


def test_it_beats_from_the_first_moment_and_stays_for_the_next_reader(store: ObjectStore) -> None:
    """The object exists when the block begins, is rewritten meanwhile, and stays: its age is what counts afterwards."""
    with keep_heartbeat(store, "heartbeat.json", body={"host": "h"}, interval_s=0.02):
        deadline = time.monotonic() + BEAT_DEADLINE_S
        while json.loads(store.read_bytes("heartbeat.json"))["beats"] < 3:
            assert time.monotonic() < deadline, "no third beat"

    assert json.loads(store.read_bytes("heartbeat.json"))["host"] == "h"


def test_a_hold_is_removed_at_the_end_also_after_a_failure(store: ObjectStore) -> None:
    """A reader's hold blocks expiry only while it reads."""

    def read_and_fail() -> None:
        with keep_heartbeat(store, "reading-x.json", body={}, is_hold=True):
            assert store.head("reading-x.json") is not None
            raise Unproven("a proof that cannot be completed")

    with pytest.raises(Unproven):
        read_and_fail()

    assert store.head("reading-x.json") is None


def test_work_does_not_begin_without_a_first_beat(object_store_access: StoreAccess) -> None:
    """A store that cannot be written to is told before anything is done."""
    nowhere = ObjectStore("s3://no-such-bucket-here/x/", object_store_access)

    with pytest.raises(SynapseOpsError), keep_heartbeat(nowhere, "heartbeat.json", body={}):
        pytest.fail("the block was entered")


def test_a_long_silence_is_an_error_before_the_next_step(store: ObjectStore) -> None:
    """Objects without a fresh heartbeat may be taken for left-overs: nothing is sealed after a long silence."""
    now_s = 1000.0
    heartbeat = Heartbeat(store, "heartbeat.json", {}, clock=lambda: now_s)
    heartbeat.beat()
    now_s += LOST_AFTER_S
    heartbeat.raise_if_lost()
    now_s += 1

    with pytest.raises(DeadlineExceeded, match="limit 600 s"):
        heartbeat.raise_if_lost()


def test_a_slow_beat_never_lands_over_what_was_told_after_it(bucket_url: str, object_store_access: StoreAccess) -> None:
    """What somebody must know if we die now stays in the object, although an older beat is still on its way."""

    class FirstIsSlow(ObjectStore):
        is_sent, may_land = threading.Event(), threading.Event()

        def put_bytes(self, key: str, data: bytes, **conditions: Any) -> WrittenObject:
            if not self.is_sent.is_set():
                self.is_sent.set()
                assert self.may_land.wait(BEAT_DEADLINE_S)
            return super().put_bytes(key, data, **conditions)

    slow = FirstIsSlow(bucket_url, object_store_access)
    heartbeat = Heartbeat(slow, "heartbeat.json", {})
    with ThreadPoolExecutor(2) as pool:
        beating = pool.submit(heartbeat.beat)
        assert slow.is_sent.wait(BEAT_DEADLINE_S)
        telling = pool.submit(heartbeat.tell, cutting="shard 0")
        wait([telling], timeout=TOLD_WITHIN_S)  # unless it waits for the beat before it
        slow.may_land.set()
        beating.result(BEAT_DEADLINE_S)
        telling.result(BEAT_DEADLINE_S)

    body = json.loads(slow.read_bytes("heartbeat.json"))
    assert (body["cutting"], body["beats"]) == ("shard 0", 2)
