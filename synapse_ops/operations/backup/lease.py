"""A lease: one holder of a name at a time, over every host that shares the repository.

`leases/<name>.json` is written only conditionally (If-None-Match, If-Match on its ETag), so of two writers one loses.
A holder renews it; each renewal changes its counter and so its ETag. No clocks are compared: an observer takes over
only when it has itself seen the *same* ETag for the whole TTL of the holder by its own monotonic clock, or when the
holder was a process of this host and boot that has ended. `epoch` grows with every new holder and is never reused.

A holder counts its time from before it asked for a renewal, an observer from after it saw the result, so the holder
stops first. What no lease can do: stop a holder that is frozen between `check()` and its next request. Callers keep
that step short and harmless to repeat.

A store without conditional writes cannot keep a lease. Then a file lock in the state directory excludes other
processes of this host only, and a warning says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from synapse_ops.domain.backup.layout import quote_segment
from synapse_ops.domain.bounded_json import read_json
from synapse_ops.errors import ConfigError, LeaseHeld, LeaseLost, SynapseOpsError
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.process_presence import has_ended_here, presence_of_this_process
from synapse_ops.systems.s3.conditional_write import write_over
from synapse_ops.systems.s3.store import ConditionFailed, ObjectStore

TTL_S = 60.0
RENEWALS_PER_TTL = 3  # two may be lost to a slow store before the lease is
POLL_S = 1.0
LONGEST_TTL_S = 24 * 3600.0  # a longer one was not written by us

_log = structlog.get_logger()


@dataclass
class Lease:
    """A held lease. `check()` belongs before every step that only its holder may take.

    epoch: 0 for a lock of this host alone. warnings: what this store cannot promise, for people.
    """

    name: str
    owner: str
    epoch: int
    warnings: tuple[str, ...] = ()
    _valid_until: float = field(default=float("inf"), repr=False)  # time.monotonic()
    _lost: str = field(default="", repr=False)

    def check(self) -> None:
        """Raise LeaseLost when another process may hold it by now."""
        if not self._lost and time.monotonic() >= self._valid_until:
            self._lost = "it could not be renewed in time"
        if self._lost:
            raise LeaseLost(
                f'lease "{self.name}" is no longer held by {self.owner}: {self._lost}',
                hint="It is safe to run the command again; completed steps are skipped.",
            )

    def extend(self, valid_until: float) -> None:
        """Hold it longer. valid_until: in seconds of `time.monotonic()`."""
        self._valid_until = valid_until

    def lose(self, reason: str) -> None:
        self._lost = self._lost or reason


@contextmanager
def hold_lease(
    repository: Repository,
    name: str,
    *,
    owner: str,
    ttl_s: float = TTL_S,
    wait_s: float = 0.0,
    note: Callable[[Any], Any] | None = None,
) -> Iterator[Lease]:
    """Hold the lease `name` while the block runs; renewed in a thread, released at the end.

    owner: for people, "expire on host-1". wait_s: how long to wait for a *living* holder; a silent one is waited for
    until its own TTL has passed. note: given the note that stands in the lease, returns what is to stand there; it is
    written with each renewal and outlives its holder. Raises LeaseHeld when another one lives on.
    """
    if not repository.store.features.conditional_writes:
        with _hold_on_this_host(repository, name, owner) as lease:
            yield lease
        return
    keeper = _Keeper(repository.store, name, owner, ttl_s, note)
    keeper.acquire(wait_s)
    stop = threading.Event()
    thread = threading.Thread(target=keeper.keep_renewing, args=(stop,), name=f"lease-{name}", daemon=True)
    thread.start()
    try:
        yield keeper.lease
    finally:
        stop.set()
        thread.join()
        keeper.release()


class _Keeper:
    """The object of one lease, written by us."""

    def __init__(
        self, store: ObjectStore, name: str, owner: str, ttl_s: float, note: Callable[[Any], Any] | None
    ) -> None:
        self._store = store
        self._key = lease_key(name)
        self._make_note = note
        self._noted: Any = None
        self._ttl_s = ttl_s
        self._token = secrets.token_hex(8)  # identifies our own write when a reply was lost
        self._renewals = 0
        self._etag = ""
        self.lease = Lease(name, owner, epoch=0)

    def acquire(self, wait_s: float) -> None:
        """Take the lease; blocks while a silent holder's TTL runs out. Raises LeaseHeld."""
        give_up_at = time.monotonic() + wait_s
        seen_etag, seen_at = "", time.monotonic()
        changed = False
        while True:
            found = self._store.read_with_etag(self._key)
            body, etag = (_parse(found[0], self._ttl_s), found[1]) if found is not None else ({}, "")
            if etag != seen_etag:
                changed = bool(seen_etag)
                seen_etag, seen_at = etag, time.monotonic()
            ttl_s = body.get("ttl_s", self._ttl_s)
            silent_s = time.monotonic() - seen_at
            self._noted = body.get("note")
            is_free = found is None or body.get("state") == "released" or silent_s >= ttl_s or has_ended_here(body)
            if is_free and self._write(body.get("epoch", 0) + 1, "held", over=etag):
                return
            if not is_free:
                if changed and time.monotonic() >= give_up_at:
                    raise LeaseHeld(
                        self.lease.name,
                        owner=str(body.get("owner", "unknown")),
                        expires_at=datetime.now(UTC) + timedelta(seconds=ttl_s - silent_s),
                    )
                time.sleep(min(POLL_S, ttl_s / 10))

    def keep_renewing(self, stop: threading.Event) -> None:
        """Renew until stopped or lost; a store that does not answer is asked again until the TTL has passed."""
        while not stop.wait(self._ttl_s / RENEWALS_PER_TTL):
            try:
                if not self._write(self.lease.epoch, "held", over=self._etag):
                    self.lease.lose("another process took it over")
                    return
            except SynapseOpsError:
                continue  # `check` raises once the TTL has passed without a renewal

    def release(self) -> None:
        """Free it for the next one at once; when that does not reach the store, its TTL frees it."""
        with suppress(SynapseOpsError):
            self._write(self.lease.epoch, "released", over=self._etag)

    def _write(self, epoch: int, state: str, *, over: str) -> bool:
        """Write our body over the version `over` (empty: over nothing); False when another writer was first."""
        asked_at = time.monotonic()
        self._renewals += 1
        body = {
            "format_version": 1,
            "name": self.lease.name,
            "owner": self.lease.owner,
            "epoch": epoch,
            "renewals": self._renewals,
            "ttl_s": self._ttl_s,
            "state": state,
            "token": self._token,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **presence_of_this_process(),
        }
        if self._make_note is not None:
            self._noted = self._make_note(self._noted)
            body["note"] = self._noted
        data = (json.dumps(body, sort_keys=True) + "\n").encode()
        try:
            self._etag = write_over(self._store, self._key, data, etag=over)
        except ConditionFailed:
            return False
        self.lease.epoch = epoch
        self.lease.extend(asked_at + self._ttl_s)
        return True


def read_note(store: ObjectStore, name: str) -> Any:
    """Return the note in a lease, whoever holds it; None where there is none."""
    found = store.read_with_etag(lease_key(name))
    return None if found is None else _parse(found[0], TTL_S).get("note")


def lease_key(name: str) -> str:
    return f"leases/{quote_segment(name)}.json"


def _parse(data: bytes, ttl_s: float) -> dict[str, Any]:
    """Return a lease's body with numbers for `ttl_s` and `epoch`; empty when it is not a JSON object.

    ttl_s: in seconds, for a body that gives none. What we cannot read may still have a living holder that renews it, so
    it holds for a TTL like any other and is then written over: an error would block every later run, until someone
    deletes the object.
    """
    try:
        body = read_json(data)
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    ttl, epoch = body.get("ttl_s", ttl_s), body.get("epoch", 0)
    if type(ttl) not in (int, float) or not 0 < ttl <= LONGEST_TTL_S:
        ttl = ttl_s
    if type(epoch) is not int or epoch < 0:
        epoch = 0
    return {**body, "ttl_s": ttl, "epoch": epoch}


@contextmanager
def _hold_on_this_host(repository: Repository, name: str, owner: str) -> Iterator[Lease]:
    if repository.state_dir is None:
        raise ConfigError(
            f'cannot take lease "{name}": {repository.url} has no conditional writes and there is no state directory',
            hint="Name a directory of this host with --state-dir.",
        )
    folder = repository.state_dir / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repository.url.encode()).hexdigest()[:16]
    warning = f'the store has no conditional writes: lease "{name}" holds on this host only'
    _log.warning(warning, repository=repository.url)
    with (folder / f"{quote_segment(name)}-{digest}.lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process of this host"
            raise LeaseHeld(name, owner=holder, expires_at=datetime.now(UTC) + timedelta(seconds=TTL_S)) from None
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
        yield Lease(name, owner, epoch=0, warnings=(warning,))
