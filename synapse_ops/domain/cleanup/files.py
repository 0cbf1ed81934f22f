"""Which log and temporary files go, which are compressed, and why each of the others stays. Pure: time is an argument.

A file's age is its time of modification. What is unknown, in the future, open, not a regular file or not ours to judge
stays; the reason of everything but plain youth is kept in the plan. Compressing keeps the time of modification, so that
a compressed log is removed at the age at which it would have been removed uncompressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from synapse_ops.domain.durations import format_days

LOGS, TEMP = "logs", "temp"
PART_PREFIX, PART_SUFFIX = ".synapse-ops-", ".gz.part"  # what compressing writes before it is complete
COMPRESSED_SUFFIX = ".gz"
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip", ".z", ".7z", ".br")
_FUTURE_TOLERANCE_NS = 5 * 60 * 1_000_000_000  # as CLOCK_TOLERANCE of retention

# a directory that holds one of these names is where a server keeps its data; it is never entered
STORE_MARKS = ("PG_VERSION", "pg_wal", "appendonlydir", "raft_state.json")

_SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
_SHARED = {"/", "/root", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var"}  # noqa: S108 - refused, never used
_SHARED |= {"/var/cache", "/var/lib", "/var/log", "/var/mail", "/var/run", "/var/spool", "/var/tmp"}  # noqa: S108
_STATE_MAY = ("logs", "temp")  # of the state directory; everything else there is data, secrets or records


class Action(StrEnum):
    """What a plan does with an entry."""

    KEEP = "keep"
    DELETE = "delete"
    COMPRESS = "compress"
    REMOVE_DIRECTORY = "remove-directory"


class Rule(StrEnum):
    """Why an entry of a plan is what it is; stable words for JSON output."""

    PAST_RETENTION = "past-retention"
    PAST_COMPRESS_AGE = "past-compress-age"
    LEFT_OVER = "left-over"
    EMPTIED = "emptied"
    YOUNG = "young"
    FUTURE_DATED = "future-dated"
    OPEN = "open"
    NOT_A_FILE = "not-a-file"
    SEVERAL_NAMES = "several-names"
    NAME_TAKEN = "name-taken"
    CHANGED = "changed"
    MOUNT = "mount"
    TOO_DEEP = "too-deep"
    NOT_READABLE = "not-readable"


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """The spec's `cleanup.logs` or `cleanup.temp`. compress_after: None where nothing is compressed."""

    kind: str
    roots: tuple[str, ...]
    retention: timedelta
    compress_after: timedelta | None = None

    @classmethod
    def of(cls, kind: str, spec: Any) -> Self:
        """Return the policy of one kind, `logs` or `temp`. spec: `synapse_ops.spec.Spec`."""
        cleanup = spec.cleanup
        if kind == TEMP:
            return cls(kind, cleanup.temp_roots, cleanup.temp.retention)
        logs = cleanup.logs
        return cls(kind, cleanup.log_roots, logs.retention, logs.compress_after if logs.compress else None)

    def as_json(self) -> dict[str, Any]:
        """Return the policy as plans carry it; durations in seconds."""
        return {
            "roots": list(self.roots),
            "retention_s": self.retention.total_seconds(),
            "compress_after_s": self.compress_after.total_seconds() if self.compress_after else None,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one entry, and the reason in one line that holds no clock reading."""

    action: Action
    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a plan. root: position in the plan's roots. path: below it. inode: of the file or directory.

    size_bytes, modified_ns: as seen. changed_ns: ctime, which reveals a new file with an old inode and time.
    links: how many names the file has; its bytes are freed with the last of them.
    """

    action: Action
    rule: Rule
    reason: str
    root: int
    path: str
    inode: int
    directory_inode: int
    size_bytes: int = 0
    modified_ns: int = 0
    changed_ns: int = 0
    links: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "action": self.action.value,
            "rule": self.rule.value,
            "reason": self.reason,
            "root": self.root,
            "path": self.path,
            "inode": self.inode,
            "directory_inode": self.directory_inode,
            "size_bytes": self.size_bytes,
            "modified_ns": self.modified_ns,
            "changed_ns": self.changed_ns,
            "links": self.links,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        return cls(Action(body["action"]), Rule(body["rule"]), *(body[name] for name in _ENTRY_FIELDS))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def directory(self) -> str:
        return self.path.rpartition("/")[0]


_ENTRY_FIELDS = (
    "reason",
    "root",
    "path",
    "inode",
    "directory_inode",
    "size_bytes",
    "modified_ns",
    "changed_ns",
    "links",
)


class FileRules:
    """A policy at one moment: reasons are written once, decisions are comparisons of integers."""

    def __init__(self, policy: FilePolicy, now: datetime) -> None:
        now_ns = int(now.timestamp() * 1e9)
        self._policy = policy
        self._future_ns = now_ns + _FUTURE_TOLERANCE_NS
        self._delete_ns = now_ns - _nanoseconds(policy.retention)
        compress_after = policy.compress_after
        self._compress_ns = now_ns - _nanoseconds(compress_after) if compress_after is not None else None
        self._left_over_ns = now_ns - _nanoseconds(timedelta(days=1))
        kept = format_days(policy.retention)
        self.delete = Decision(Action.DELETE, Rule.PAST_RETENTION, f"not written for {kept}")
        self.young = Decision(Action.KEEP, Rule.YOUNG, f"written within {kept}")
        self.future = Decision(Action.KEEP, Rule.FUTURE_DATED, "dated in the future")
        self.left_over = Decision(Action.DELETE, Rule.LEFT_OVER, "left by a compression that was cut off")
        self.emptied = Decision(Action.REMOVE_DIRECTORY, Rule.EMPTIED, f"empty then, and not written for {kept}")
        self.special = Decision(Action.KEEP, Rule.NOT_A_FILE, "a link, socket, pipe or device")
        several = "has several names; compressing one would free nothing"
        self.several_names = Decision(Action.KEEP, Rule.SEVERAL_NAMES, several)
        self.name_taken = Decision(Action.KEEP, Rule.NAME_TAKEN, "its name with .gz is taken")
        if compress_after is not None:
            written = f"not written for {format_days(compress_after)}"
            self.compress = Decision(Action.COMPRESS, Rule.PAST_COMPRESS_AGE, written)

    def decide(self, *, name: str, is_regular: bool, size_bytes: int, modified_ns: int, links: int) -> Decision:
        """Decide by what lstat says; whether a file is open is asked only where something would happen to it."""
        if not is_regular:
            return self.special
        if modified_ns > self._future_ns:
            return self.future
        if modified_ns <= self._delete_ns:
            return self.delete
        if self._compress_ns is None:
            return self.young
        if name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX):
            return self.left_over if modified_ns <= self._left_over_ns else self.young
        if modified_ns > self._compress_ns or size_bytes == 0 or name.lower().endswith(_COMPRESSED):
            return self.young
        return self.compress if links == 1 else self.several_names

    def decide_directory(self, *, is_emptied: bool, modified_ns: int) -> bool:
        """Whether a directory goes with its content: only of temporary files, and only an old one."""
        return is_emptied and self._policy.kind == TEMP and modified_ns <= self._delete_ns


def _nanoseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1e9)


def root_fault(root: str, state_dir: str) -> str:
    """Return why a directory may not be a root of a cleanup, whatever the spec says, or an empty string.

    root, state_dir: absolute real paths. What lies in it is judged when it is looked at.
    """
    clean = "/" + "/".join(part for part in root.split("/") if part)
    if ".." in root.split("/") or "." in root.split("/"):
        return "it holds . or .."
    if clean in _SHARED or clean.split("/")[1] in _SYSTEM:
        return "it belongs to the system, not to this stack alone"
    if clean.startswith("/home/") and clean.count("/") == 2:
        return "it is a home directory"
    if clean == state_dir or state_dir.startswith(f"{clean}/"):
        return f"it holds the state directory {state_dir}"
    if clean.startswith(f"{state_dir}/") and clean[len(state_dir) + 1 :].split("/")[0] not in _STATE_MAY:
        return f"it lies in the state directory, where only {' and '.join(_STATE_MAY)} may be cleaned up"
    marked = [part for part in clean.split("/") if part in STORE_MARKS]
    if marked:
        return f"a server keeps its data there: {marked[0]}"
    return ""
