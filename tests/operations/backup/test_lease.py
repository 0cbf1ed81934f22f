"""Leases: one holder at a time, on a real store; no clock of another host is ever asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from synapse_ops.errors import ConfigError, LeaseHeld, LeaseLost
from synapse_ops.operations.backup.lease import Lease, hold_lease
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess, WrittenObject
from tests.memory_store import MemoryStore

TTL_S = 1.0
SAFE_TTL_S = 9.0  # renewed after 3 s, so that a busy host does not lose it
LOST_WITHIN_S = 10.0
KEY = "leases/expiry.json"


@pytest.fixture
def repository(object_store_access: StoreAccess, bucket_url: str) -> Repository:
    return Repository(ObjectStore(bucket_url, object_store_access))


def body_of(repository: Repository) -> dict[str, object]:
    body: dict[str, object] = json.loads(repository.store.read_bytes(KEY))
    return body


def write_foreign_holder(repository: Repository, **changes: object) -> None:
    """Write a lease that a process of another host holds."""
    body = {"name": "expiry", "owner": "host-2", "epoch": 7, "renewals": 1, "ttl_s": TTL_S, "state": "held"}
    repository.store.put_bytes(KEY, json.dumps({**body, "host": "host-2", "boot_id": "other", **changes}).encode())


def check_until_lost(lease: Lease) -> None:
    deadline = time.monotonic() + LOST_WITHIN_S
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.02)


def test_a_lease_has_one_holder_and_the_next_one_has_a_new_epoch(repository: Repository) -> None:
    """A released lease is free at once; its epoch grows with every holder."""
    with hold_lease(repository, "expiry", owner="first") as first:
        first.check()
        held = body_of(repository)
    with hold_lease(repository, "expiry", owner="second") as second:
        second.check()

    assert (held["owner"], held["state"], held["epoch"]) == ("first", "held", 1)
    assert (second.epoch, body_of(repository)["state"]) == (2, "released")


def test_a_living_holder_keeps_its_lease(repository: Repository) -> None:
    """It renews; whoever sees a renewal is told who works, and until when it holds at least."""
    with (
        hold_lease(repository, "expiry", owner="first", ttl_s=TTL_S) as lease,
        pytest.raises(LeaseHeld, match="held by first until"),
        hold_lease(repository, "expiry", owner="second", ttl_s=TTL_S),
    ):
        pytest.fail("two hold it")
    lease.check()


def test_a_silent_holder_loses_its_lease_after_its_own_ttl(repository: Repository) -> None:
    """Expiry is an unchanged object seen for the holder's TTL by the observer's monotonic clock, nothing else."""
    write_foreign_holder(repository, at="2999-01-01T00:00:00+00:00")
    began = time.monotonic()

    with hold_lease(repository, "expiry", owner="second") as lease:
        waited_s = time.monotonic() - began

    assert waited_s >= TTL_S
    assert lease.epoch == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl_s": "soon", "epoch": "seven"},
        {"ttl_s": None, "epoch": None},
        {"ttl_s": -1, "epoch": -1},
        {"ttl_s": float("nan"), "epoch": 7.5},
        {"ttl_s": float("inf"), "epoch": True},
        {"ttl_s": 1e9, "epoch": []},
    ],
    ids=lambda changes: str(changes["ttl_s"]),
)
def test_a_lease_that_another_tool_wrote_holds_for_our_ttl_and_is_then_written_over(
    repository: Repository, changes: dict[str, object]
) -> None:
    """Its holder may live and renew it; one that is silent blocks nobody for ever, and is never an error."""
    write_foreign_holder(repository, **changes)
    asked_at = time.monotonic()

    with hold_lease(repository, "expiry", owner="next", ttl_s=TTL_S) as lease:
        waited_s = time.monotonic() - asked_at
        lease.check()

    assert waited_s >= TTL_S
    assert lease.epoch == 1


def test_a_lease_whose_reply_was_lost_is_held(bucket_url: str, object_store_access: StoreAccess) -> None:
    """The repeated request meets our own bytes: they carry a token, so they are not another holder's."""

    class LosesReplies(ObjectStore):
        def put_bytes(self, key: str, data: bytes, **conditions: Any) -> WrittenObject:
            written = super().put_bytes(key, data, **conditions)
            return super().put_bytes(key, data, **conditions) if conditions else written

    repository = Repository(LosesReplies(bucket_url, object_store_access))
    with hold_lease(repository, "expiry", owner="first", ttl_s=SAFE_TTL_S) as lease:
        begun = time.monotonic()
        while body_of(repository)["renewals"] == 1:
            assert time.monotonic() - begun < SAFE_TTL_S, "it was never renewed"
        lease.check()

    assert (body_of(repository)["owner"], body_of(repository)["state"]) == ("first", "released")


def test_a_dead_process_of_this_host_is_not_waited_for(repository: Repository, tmp_path: Path) -> None:
    """kill -9, then again: the holder's pid and start are those of no living process, so the lease is free."""
    script = tmp_path / "holder.py"
    script.write_text(
        "import sys, time\n"
        "from synapse_ops.operations.backup.lease import hold_lease\n"
        "from synapse_ops.operations.repository import open_repository\n"
        "from synapse_ops.systems.s3.store import StoreAccess\n"
        "with hold_lease(open_repository(sys.argv[1], StoreAccess.from_environment()), 'expiry', owner='doomed'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    access = repository.store.access
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "AWS_ENDPOINT_URL": access.endpoint or "",
        "AWS_ACCESS_KEY_ID": access.access_key or "",
        "AWS_SECRET_ACCESS_KEY": access.secret_key or "",
    }
    holder = subprocess.Popen([sys.executable, script, repository.url], env=environment, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    began = time.monotonic()

    with hold_lease(repository, "expiry", owner="next") as lease:
        lease.check()

    assert time.monotonic() - began < 30  # its TTL was 60 s


def test_a_lost_lease_is_visible_to_its_holder(repository: Repository) -> None:
    """When somebody else wrote the lease, the next renewal finds out and check raises."""
    with hold_lease(repository, "expiry", owner="first", ttl_s=TTL_S) as lease:
        write_foreign_holder(repository)
        with pytest.raises(LeaseLost, match="no longer held by first"):
            check_until_lost(lease)

    assert body_of(repository)["owner"] == "host-2"  # releasing did not touch the other one's


def test_a_lease_that_cannot_be_renewed_is_lost_before_others_may_take_it(repository: Repository) -> None:
    """A store that does not answer: the holder stops by its own clock, counted from before its last renewal."""
    with hold_lease(repository, "expiry", owner="first", ttl_s=TTL_S) as lease:
        repository.store.access = StoreAccess(endpoint="http://127.0.0.1:1")
        repository.store.__dict__.pop("_client")
        with pytest.raises(LeaseLost, match="could not be renewed in time"):
            check_until_lost(lease)


def test_of_many_that_ask_at_once_one_holds_it(repository: Repository) -> None:
    """Conditional writes let one of two writers lose, so no two are ever inside together."""
    inside, overlaps = threading.Lock(), []

    def work(number: int) -> int:
        try:
            with hold_lease(repository, "expiry", owner=f"worker {number}", ttl_s=5, wait_s=60) as lease:
                overlaps.append(not inside.acquire(blocking=False))
                lease.check()
                inside.release()
                return lease.epoch
        except LeaseHeld:
            return 0

    assert repository.store.features.conditional_writes
    with ThreadPoolExecutor(4) as pool:
        epochs = [epoch for epoch in pool.map(work, range(4)) if epoch]

    assert not any(overlaps)
    assert len(epochs) == len(set(epochs)) >= 1


def test_without_conditional_writes_a_file_lock_excludes_this_host_and_says_so(tmp_path: Path) -> None:
    """The weaker promise is named, not hidden."""
    repository = Repository(MemoryStore(conditional_writes=False), state_dir=tmp_path)

    with ExitStack() as stack:
        lease = stack.enter_context(hold_lease(repository, "expiry", owner="first"))
        with pytest.raises(LeaseHeld, match="held by first"):
            stack.enter_context(hold_lease(repository, "expiry", owner="second"))

    assert lease.warnings == ('the store has no conditional writes: lease "expiry" holds on this host only',)
    assert not repository.store.objects
    with pytest.raises(ConfigError, match="no state directory"):
        stack.enter_context(hold_lease(Repository(MemoryStore(conditional_writes=False)), "expiry", owner="third"))
