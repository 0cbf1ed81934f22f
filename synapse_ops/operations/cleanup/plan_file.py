"""A cleanup plan on disk: streamed line by line while it is made and while it is applied, so that memory stays flat.

    <state_dir>/plans/<kind>-<digest>.jsonl           header, one line per entry, trailer with the totals
    <state_dir>/plans/<kind>-<digest>.applied.jsonl   what an apply left out and why; its trailer says that it is done
    <state_dir>/locks/cleanup-<kind>.lock             held (flock) while a plan of that kind is applied

A cleanup is for full disks: where the state directory's has no room, these are written to a folder of this user's in
memory or in the temporary directory instead, whose name is derived from the state directory's. Both are read.

The digest covers the policy and every entry, and no reading of a clock: planning twice without a change gives one
digest. The time it was made is in the header only. A plan older than MAX_AGE, or applied since it was made, is refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from synapse_ops.errors import ConfigError, DocumentUnreadable, LeaseHeld, PlanChanged, SynapseOpsError
from synapse_ops.systems.host.spare_folder import known_folders, make_folder

FORMAT_VERSION = 1
MAX_AGE = timedelta(hours=24)  # an approval is for what lies there today
FIRST_ROWS = 200  # what Dagster and a terminal show; the totals stand beside them
KINDS = ("logs", "temp", "cache", "snapshots", "history")
_SUPERSEDED_AFTER = timedelta(days=7)
_DIGEST = re.compile(r"[0-9a-f]{16}")
_PLAIN = bytes(sign for sign in range(0x20, 0x7F) if sign not in b'"\\') + b"\n"  # JSON writes them as they are
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, check_circular=False).encode


@dataclass
class StoredPlan:
    """A plan as it lies on disk. totals, first_rows, warnings: for people. first_rows: what it does, then the rest."""

    kind: str
    digest: str
    made_at: datetime
    policy: Mapping[str, Any]
    totals: Mapping[str, Any]
    first_rows: list[dict[str, Any]]
    warnings: list[str]
    path: Path


@dataclass
class PlanWriter:
    """Takes a plan's entries one by one."""

    _file: BinaryIO
    _digest: Any
    _acting: list[dict[str, Any]] = field(default_factory=list)
    _kept: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: dict[str, Any], *, acts: bool) -> None:
        """acts: whether the plan does something to it; those are shown first."""
        line = _encode(entry).encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        rows = self._acting if acts else self._kept
        if len(rows) < FIRST_ROWS:
            rows.append(entry)

    def add_lines(self, entry: dict[str, Any], name: str, lines: bytes) -> None:
        """Add entries that act and differ in one field alone, which comes last. lines: its values, one a line.

        Equal to `add` of each. Values of plain signs are written as a block: a million entries cost no loop here.
        """
        if len(self._acting) < FIRST_ROWS or lines.translate(None, _PLAIN):
            for value in lines.split(b"\n"):
                self.add({**entry, name: value.decode("utf-8", "surrogateescape")}, acts=True)
            return
        head, tail = f'{_encode(entry)[:-1]},"{name}":"'.encode(), b'"}\n'
        block = head + lines.replace(b"\n", tail + head) + tail
        self._file.write(block)
        self._digest.update(block)

    @property
    def first_rows(self) -> list[dict[str, Any]]:
        return [*self._acting, *self._kept][:FIRST_ROWS]

    @property
    def digest(self) -> str:
        return str(self._digest.hexdigest()[:16])


@dataclass
class Draft:
    """What a block that makes a plan fills in before it ends."""

    writer: PlanWriter
    totals: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stored: StoredPlan | None = None

    @property
    def plan(self) -> StoredPlan:
        """The plan, once the block has ended well."""
        if self.stored is None:
            raise RuntimeError("a plan is read before it was written to its end")
        return self.stored


@contextmanager
def write_plan(state_dir: Path, kind: str, policy: Mapping[str, Any], now: datetime) -> Iterator[Draft]:
    """Make a plan: the block adds entries and totals; the document appears whole under its digest, or not at all."""
    folder = make_folder(state_dir, "plans")
    _remove_superseded(folder, kind, now)
    making = folder / f".{kind}-{secrets.token_hex(8)}.making"
    header = {"format_version": FORMAT_VERSION, "kind": kind, "made_at": now.isoformat(), "policy": dict(policy)}
    try:
        with making.open("xb") as file:
            file.write(_encode(header).encode() + b"\n")
            draft = Draft(PlanWriter(file, hashlib.sha256(_encode([kind, header["policy"]]).encode())))
            yield draft
            digest = draft.writer.digest
            trailer = {"digest": digest, "totals": draft.totals, "warnings": draft.warnings}
            file.write(_encode(trailer).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{kind}-{digest}.jsonl"
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
    draft.stored = StoredPlan(kind, digest, now, policy, draft.totals, draft.writer.first_rows, draft.warnings, path)


def _remove_superseded(folder: Path, kind: str, now: datetime) -> None:
    """Remove our own plans that can no longer be applied, and what killed runs left."""
    for path in (*folder.glob(f"{kind}-*.jsonl"), *folder.glob(f".{kind}-*.making")):
        try:
            if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > _SUPERSEDED_AFTER:
                path.unlink()
        except FileNotFoundError:
            continue


@dataclass
class OpenPlan:
    """A plan that may be applied now. `entries` can be read any number of times; it reads the file that was checked."""

    header: Mapping[str, Any]
    made_at: datetime
    _file: BinaryIO

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in their order."""
        self._file.seek(0)
        self._file.readline()
        line = self._file.readline()
        for following in self._file:
            yield json.loads(line)
            line = following


@dataclass
class Outcome:
    """What one apply did. rows: the first entries that were left out, with reasons; the whole is in `path`."""

    done: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    freed_bytes: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None
    _file: BinaryIO | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the outcome's fields; stable names."""
        return {
            "done": dict(self.done),
            "skipped": self.skipped,
            "freed_bytes": self.freed_bytes,
            "first_skipped": self.rows,
            "path": str(self.path),
        }

    def did(self, action: str, freed_bytes: int = 0, *, times: int = 1) -> None:
        if times:
            self.done[action] = self.done.get(action, 0) + times
        self.freed_bytes += freed_bytes

    def skip(self, entry: Mapping[str, Any], reason: str) -> None:
        row = {**entry, "skipped_because": reason}
        self.skipped += 1
        if len(self.rows) < FIRST_ROWS:
            self.rows.append(row)
        if self._file is not None:
            self._file.write(_encode(row).encode() + b"\n")


def find_kind(state_dir: Path, digest: str) -> str:
    """Return the kind of the plan with a digest. Raises ConfigError for no digest, PlanChanged for no such plan."""
    _check_digest(digest)
    for kind in KINDS:
        if _find(state_dir, f"{kind}-{digest}.jsonl") is not None:
            return kind
    raise _no_plan(digest)


def _find(state_dir: Path, name: str) -> Path | None:
    """Return the newest file of this name in the folders of plans; None where there is none."""
    there = [path for folder in known_folders(state_dir, "plans") if (path := folder / name).is_file()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


@contextmanager
def apply_plan(state_dir: Path, kind: str, digest: str, now: datetime) -> Iterator[tuple[OpenPlan, Outcome]]:
    """Hold a plan for one application: no other process applies one of its kind meanwhile.

    When the block ends well the digest is used. When it does not, the same plan may be applied again, and the detail of
    the error says what was done.
    Raises PlanChanged (no such plan, edited, too old, used), LeaseHeld, ConfigError (no digest).
    """
    _check_digest(digest)
    path, name = _find(state_dir, f"{kind}-{digest}.jsonl"), f"{kind}-{digest}.applied.jsonl"
    if path is None:
        raise _no_plan(digest)
    with _lock(state_dir, kind, now), _open(path, kind, digest) as plan:
        used = _find(state_dir, name)
        if used is not None:
            _refuse_used(used, plan, digest)
        _refuse_old(plan, kind, digest, now)
        applied = make_folder(state_dir, "plans") / name
        with applied.open("wb") as file:
            outcome = Outcome(path=applied, _file=file)
            try:
                yield plan, outcome
            except SynapseOpsError as error:  # no outcome will say what was done
                done = [f"done before that: {action} {times} times" for action, times in sorted(outcome.done.items())]
                freed = [f"freed before that: {outcome.freed_bytes} bytes"] if outcome.freed_bytes else []
                error.detail = "\n".join(filter(None, [error.detail, *done, *freed]))
                raise
            trailer = {
                "digest": digest,
                "plan_made_at": plan.made_at.isoformat(),
                "applied_at": now.isoformat(),
                "done": outcome.done,
                "skipped": outcome.skipped,
                "freed_bytes": outcome.freed_bytes,
            }
            file.write(_encode(trailer).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _lock(state_dir: Path, kind: str, now: datetime) -> Iterator[None]:
    with _lock_file(state_dir, f"cleanup-{kind}.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().decode(errors="replace").strip() or "another process of this host"
            raise LeaseHeld(f"cleanup-{kind}", owner=owner, expires_at=now + timedelta(minutes=1)) from None
        with suppress(OSError):  # a full disk: the lock is what counts
            lock.truncate(0)
            lock.write(f"cleanup, pid {os.getpid()}".encode())
        yield


def _lock_file(state_dir: Path, name: str) -> BinaryIO:
    """Open the lock, unbuffered, in the state directory where an empty file can still be made there."""
    try:
        folder = state_dir / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("ab+", buffering=0)
    except OSError as full:
        if full.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return (make_folder(state_dir, "locks") / name).open("ab+", buffering=0)


@contextmanager
def _open(path: Path, kind: str, digest: str) -> Iterator[OpenPlan]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise _no_plan(digest) from None
    with file:
        try:
            header = json.loads(file.readline())
            if (header["format_version"], header["kind"]) != (FORMAT_VERSION, kind):
                raise DocumentUnreadable(f"cannot read {path}: format {header['format_version']} {header['kind']}")
            found = _digest_of(file, [kind, header["policy"]])
            made_at = datetime.fromisoformat(header["made_at"])
        except (ValueError, KeyError, TypeError) as fault:
            raise DocumentUnreadable(f"cannot read {path}: {type(fault).__name__}", detail=str(fault)) from fault
        if found != digest:
            raise PlanChanged(f"the plan stored as {digest} has digest {found}", hint="Was it edited? Plan again.")
        yield OpenPlan(header, made_at, file)


def _digest_of(file: BinaryIO, head: list[Any]) -> str:
    """Return the digest of the entries that follow; the last line, the trailer, is not one."""
    digest = hashlib.sha256(_encode(head).encode())
    line = file.readline()
    for following in file:
        digest.update(line)
        line = following
    if "digest" not in json.loads(line):
        raise ValueError("it has no trailer")
    return digest.hexdigest()[:16]


def _refuse_used(applied: Path, plan: OpenPlan, digest: str) -> None:
    trailer = _last_line(applied)
    if trailer.get("plan_made_at") == plan.made_at.isoformat():
        raise PlanChanged(
            f"plan {digest} was applied at {trailer['applied_at']}",
            hint="`synapse-ops cleanup --plan` makes a new one.",
        )


def _last_line(path: Path) -> dict[str, Any]:
    """Return the trailer of what an apply wrote; empty when there was none, or it was cut off."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            body = json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return body if isinstance(body, dict) and "applied_at" in body else {}


def _refuse_old(plan: OpenPlan, kind: str, digest: str, now: datetime) -> None:
    age = now - plan.made_at
    if age > MAX_AGE or age < -timedelta(minutes=5):
        raise PlanChanged(
            f"plan {digest} of {kind} was made at {plan.made_at.isoformat(timespec='seconds')}, "
            f"{age.total_seconds() / 3600:.1f} h ago, limit {MAX_AGE.total_seconds() / 3600:.0f} h",
            hint="`synapse-ops cleanup --plan` makes a new one.",
        )


def _check_digest(digest: str) -> None:
    if _DIGEST.fullmatch(digest) is None:
        raise ConfigError(
            f'"{digest}" is not the digest of a plan: 16 hex digits',
            hint="`synapse-ops cleanup --plan` prints the digests.",
        )


def _no_plan(digest: str) -> PlanChanged:
    return PlanChanged(
        f"there is no cleanup plan {digest}", hint="`synapse-ops cleanup --plan` makes one and prints its digest."
    )


def subject_of(row: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """Return what an entry is about, printable: bytes that are not text, and control characters, are escaped."""
    name = str(row.get("path") or row.get("key") or row.get("subject") or "")
    roots = policy.get("roots", [])
    if "root" in row and row["root"] < len(roots):
        name = f"{roots[row['root']]}/{name}"
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
