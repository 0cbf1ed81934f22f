"""Where everything lies in a repository: the only place that builds or parses a key.

    <destination>/                                       s3://backups/database/, the spec's backup.database.destination
      leases/<name>.json                                 one writer at a time (docs/repository-format.md, "Leases")
      plans/<kind>-<digest>.jsonl                        a plan that may be applied by its digest
      probes/<host>-<8 hex>.json                         put, read and removed by a prober of the store
      failover/<system identifier>/<timeline>.json       who ended a timeline: a failover, a recovery
      drills/<time>-<6 hex>.json                         scores of drills (domain/recovery/drill_score.py)
      <identity>/dump/<database>/<backup id>/            a logical dump of one database
      <identity>/snapshot/<collection>/<backup id>/      the Qdrant snapshots of one collection
      <identity>/rdb/<address>/<backup id>/              an RDB snapshot of one Redis server
      <identity>/base/cluster/<backup id>/               a base backup of the whole PostgreSQL cluster
      <identity>/wal/                                    its WAL (domain/database/wal_keys.py)
        started.json                                     written first
        heartbeat.json                                   rewritten while the backup runs; its age decides left-overs
        database.dump[.age]  globals.sql[.age]           pg_dump -Fc; pg_dumpall --globals-only
        fingerprint.json[.age]  structure.json[.age]     what a restored copy must equal
        supplement.sql[.age]                             what pg_dump leaves out
        shard-<n>-of-<peer>.snapshot[.zst][.age]         one shard of a collection, in the server's own archive layout
        collection.json[.age]  canaries.json[.age]       its configuration, payload schema and aliases; stored queries
        dump.rdb[.age]                                   every logical database of a Redis server, as it was sent
        base.tar[.zst][.age]  <oid>.tar[.zst][.age]      data directory, and each tablespace, as the server sent it
        backup_manifest[.age]                            every file of both, with its sha256
        backup.json                                      written last: a backup exists when this exists
        proof-<time>.json                                one per completed proof, passed or failed
        attempt-<time>.json                              a proof that never began: no key, programs or space
        pin-<label>.json                                 exempts it from expiry
        reading-<reader>.json                            rewritten while a restore or proof reads it

`identity` is `<system identifier>-<generation>`. Keys hold no `//`, `.` or `..` segment and no key is a directory of
another object, because some stores refuse or lose those. `parse_key` inverts `BackupPlace.key` (property test).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote

from synapse_ops.errors import ConfigError

STARTED = "started.json"
HEARTBEAT = "heartbeat.json"
BACKUP = "backup.json"

KIND_DUMP = "dump"
KIND_SNAPSHOT = "snapshot"
KIND_RDB = "rdb"
KIND_BASE = "base"
KINDS = (KIND_DUMP, KIND_SNAPSHOT, KIND_RDB, KIND_BASE)
TIMELINE_ENDS = "failover/"
OWN_PREFIXES = ("leases/", "plans/", "probes/", "drills/", TIMELINE_ENDS)  # of what is no backup and no WAL
WAL = "wal"  # the folder of an identity's WAL, in which no backup lies (domain/database/wal_keys.py)

# every name that this tool writes below a backup's prefix; anything else there is foreign and never touched
_OWN_NAME = re.compile(
    r"started\.json|heartbeat\.json|backup\.json"
    r"|(?:database\.dump|globals\.sql|fingerprint\.json|structure\.json|supplement\.sql)(?:\.age)?"
    r"|(?:collection\.json|canaries\.json|dump\.rdb)(?:\.age)?"
    r"|(?:base|\d{1,10})\.tar(?:\.zst)?(?:\.age)?|backup_manifest(?:\.age)?"
    r"|shard-\d{1,6}-of-\d{1,20}\.snapshot(?:\.zst)?(?:\.age)?"
    r"|(?:proof|attempt)-\d{8}T\d{6}Z\.json|(?:pin|reading)-[A-Za-z0-9_%~-]+\.json",
    re.ASCII,
)
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_BACKUP_ID = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]{6})", re.ASCII)
_IDENTITY = re.compile(r"(\d{1,20})-([0-9a-f]{8})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Which server a backup belongs to.

    system_identifier: PostgreSQL's own, decimal, from pg_control_system().
    generation: 8 hex digits, ours; a restored copy that goes live gets a new one, so that two servers with one
    system identifier never write under one prefix.
    """

    system_identifier: str
    generation: str

    def __str__(self) -> str:
        return f"{self.system_identifier}-{self.generation}"

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Return the identity written as `<system identifier>-<generation>`; raises ValueError for anything else."""
        match = _IDENTITY.fullmatch(text)
        if match is None:
            raise ValueError(f'"{text}" is not <system identifier>-<8 hex digits>')
        return cls(match[1], match[2])


def timeline_ends(system_identifier: str) -> str:
    """Return the prefix of the claims to end the timelines of a cluster, whatever its generation."""
    return f"{TIMELINE_ENDS}{system_identifier}/"


def timeline_end_key(system_identifier: str, timeline: int) -> str:
    """Return the key of the claim to end a timeline; 8 hex digits name it."""
    return f"{timeline_ends(system_identifier)}{timeline:08X}.json"


def is_identity(text: str) -> bool:
    """Return whether a key's first segment is an identity."""
    return _IDENTITY.fullmatch(text) is not None


def new_backup_id(now: datetime, entropy: bytes) -> str:
    """Return `20261123T201726Z-3f9a1c`: sorts by the second of its start, unique by 3 bytes of entropy."""
    return f"{format_time(now)}-{entropy[:3].hex()}"


def started_at_of(backup_id: str) -> datetime:
    """Return the start (aware UTC, whole seconds) that a backup id carries; raises ConfigError for another form."""
    if not _is_backup_id(backup_id):
        raise ConfigError(
            f'backup id "{backup_id}" is not of the form 20261123T201726Z-3f9a1c',
            hint="`synapse-ops backup list` prints the ids that exist.",
        )
    return parse_time(backup_id.partition("-")[0])


def format_time(moment: datetime) -> str:
    """Return an aware time as `20261123T201726Z`."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """Return the aware UTC time written by `format_time`; raises ValueError."""
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


@lru_cache(maxsize=256)
def quote_segment(name: str) -> str:
    """Return a subject, pin or reader name as one key segment: percent-encoded UTF-8, never `.` or `..` or empty."""
    quoted = quote(name, safe="-_")  # a dot is encoded too: `.` and `..` are path segments to many stores
    return quoted.replace(".", "%2E")


@dataclass(frozen=True, slots=True, order=True)
class BackupPlace:
    """The prefix of one backup. `prefix` ends in a slash; `key(name)` is one object of it.

    subject: what is backed up, by its own name: the database of a dump, the collection of a
    snapshot, the address of a Redis server.
    """

    identity: Identity
    kind: str
    subject: str
    backup_id: str

    @property
    def prefix(self) -> str:
        return f"{self.identity}/{self.kind}/{quote_segment(self.subject)}/{self.backup_id}/"

    def key(self, name: str) -> str:
        return self.prefix + name

    def is_of(self, kind: str | None, subject: str | None = None) -> bool:
        """Whether it is of this kind and subject; None means any."""
        return kind in {None, self.kind} and subject in {None, self.subject}


@dataclass(frozen=True, slots=True)
class BackupKey:
    """A parsed key of a backup: where it belongs, and the object's own name there."""

    place: BackupPlace
    name: str


def parse_key(key: str) -> BackupKey | None:
    """Return what a key under the destination is, or None for anything that is not ours to touch.

    Only exactly our own forms are recognised: a foreign object is None, even inside a backup's own prefix, and so it
    is never judged, counted as the backup's, or deleted.
    """
    parts = key.split("/")
    if len(parts) != 5 or not is_own_name(parts[4]):
        return None
    identity_text, kind, subject, backup_id, name = parts
    if _IDENTITY.fullmatch(identity_text) is None or kind not in KINDS or not _is_backup_id(backup_id):
        return None
    # one object for equal identities and names: 10,000 backups share a handful of them
    place = BackupPlace(_shared_identity(identity_text), sys.intern(kind), sys.intern(unquote(subject)), backup_id)
    if place.key(name) != key:  # another spelling of the same name is not a key that we wrote
        return None
    return BackupKey(place, name)


def _is_backup_id(text: str) -> bool:
    """Return whether a segment is a backup id: the form, and a moment that exists (20260230T... is foreign)."""
    if _BACKUP_ID.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text[:16])
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def _shared_identity(text: str) -> Identity:
    return Identity.parse(text)


def is_own_name(name: str) -> bool:
    """Return whether an object below a backup's prefix has a name that we write; others are foreign and left alone."""
    return _OWN_NAME.fullmatch(name) is not None


def proof_name(at: datetime) -> str:
    """Return the object name of a proof finished at `at`."""
    return f"proof-{format_time(at)}.json"


def attempt_name(at: datetime) -> str:
    """Return the object name of a proof that could not be attempted; `time_of_attempt` gives the time back."""
    return f"attempt-{format_time(at)}.json"


def time_of_attempt(name: str) -> datetime:
    """Return the time (aware UTC, whole seconds) in the name of an attempt; raises ValueError for none that exists."""
    return parse_time(name.removeprefix("attempt-").removesuffix(".json"))


def pin_name(label: str) -> str:
    """Return the object name of a pin; the label comes back by `label_of_pin`."""
    return f"pin-{quote_segment(label)}.json"


def label_of_pin(name: str) -> str:
    """Return the label of a pin object's name."""
    return unquote(name.removeprefix("pin-").removesuffix(".json"))


def reading_name(reader: str) -> str:
    """Return the object name of a reader's hold."""
    return f"reading-{quote_segment(reader)}.json"
