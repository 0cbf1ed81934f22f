"""What is backed up, encrypted, proven, kept and rehearsed: `backup`, `encryption`, `retention`, `proof`, ..."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from synapse_ops.spec.block import (
    FORM,
    Block,
    BucketUrl,
    Count,
    Duration,
    Ratio,
    Retention,
    Schedule,
    ScheduleOrOff,
    Secret,
    Size,
)
from synapse_ops.spec.cron import Cron

RECIPIENT_FORM = "an age public key: age1 and 58 characters, as `age-keygen` prints it"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def _bech32_checksum(text: str) -> int:
    """Return the BCH checksum of a Bech32 string; 1 means intact. Source: BIP 173."""
    part, _, data = text.rpartition("1")
    values = [ord(c) >> 5 for c in part] + [0] + [ord(c) & 31 for c in part] + [_BECH32.index(c) for c in data]
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            if top >> bit & 1:
                checksum ^= generator
    return checksum


def _parse_recipient(value: object) -> str:
    """Return the recipient. A mistyped one breaks its checksum: what is encrypted for it could never be opened."""
    if not isinstance(value, str) or re.fullmatch(rf"age1[{_BECH32}]{{58}}", value) is None:
        raise ValueError(RECIPIENT_FORM)
    if _bech32_checksum(value) != 1:
        raise ValueError(f"{RECIPIENT_FORM}; the checksum of this one does not match, so a character is wrong")
    return value


Recipient = Annotated[
    str,
    BeforeValidator(_parse_recipient),
    WithJsonSchema({"type": "string", "pattern": f"^age1[{_BECH32}]{{58}}$", FORM: RECIPIENT_FORM}),
]


class WalReceiving(Block):
    """The resident receiver of WAL."""

    chunk_interval: Duration = Field(
        timedelta(seconds=1), description="How often new WAL is put into the repository, each time as an object."
    )
    spool: Size = Field(
        4 << 30, description="Most disk space that WAL takes on the receiver's host while the store is away."
    )
    synchronous: bool = Field(
        False,
        description="Whether each commit waits until its WAL is in the repository; chunks then follow each other.",
    )


class BaseBackups(Block):
    """Base backups of the whole cluster."""

    max_rate: Annotated[Size, Field(ge=32 << 10, le=1 << 30)] | None = Field(
        None, description="Most that the server sends in a second, 32Ki to 1Gi; null: no limit."
    )
    full_every: Annotated[Retention, Field(ge=timedelta(days=1), le=timedelta(days=30))] | None = Field(
        None,
        description="After this time a base backup is a full one again; those in between hold what changed since the "
        "one before, and need PostgreSQL 17 with summarize_wal. 1d to 30d; null: each is a full one.",
    )


class DatabaseBackup(Block):
    """Backups of PostgreSQL."""

    schedule: Schedule = Field(Cron("0 0 * * *"), description="When every database is dumped, in `time_zone`.")
    destination: BucketUrl = Field("s3://backups/database/", description="Where the repository lies.")
    retention: Retention = Field(
        timedelta(days=30), description="Every moment of this window stays restorable. A bare number is days."
    )
    wal_archiving: Literal["continuous", "command", "off"] = Field(
        "continuous",
        description="How WAL gets into the repository, so that any moment can be restored: streamed by the receiver, "
        "or handed over by the server's archive_command, a segment at a time.",
    )
    wal: WalReceiving = Field(WalReceiving(), description="How WAL is received.")
    base: BaseBackups = Field(BaseBackups(), description="How base backups are taken.")
    role_passwords: Literal["encrypted", "always", "never"] = Field(
        "encrypted",
        description="When the SCRAM verifiers of roles are part of a dump: only of an encrypted one, always, or never.",
    )


class VectorBackup(Block):
    """Backups of Qdrant."""

    schedule: Schedule = Field(Cron("0 0 * * *"), description="When every collection is snapshotted, in `time_zone`.")
    destination: BucketUrl = Field("s3://backups/vectors/", description="Where the repository lies.")
    retention: Retention = Field(timedelta(days=7), description="How long snapshots are kept. A bare number is days.")
    compression: bool = Field(
        True, description="Whether snapshots are compressed with zstd, where a sample shows that it pays."
    )
    method: Literal["auto", "stored", "streamed"] = Field(
        "auto",
        description="How a shard leaves Qdrant: stored on its disk first, with a checksum; streamed, which needs none; "
        "or auto: stored, and streamed when there is not enough space.",
    )


class RedisBackup(Block):
    """Backups of Redis, where it holds more than a cache."""

    schedule: Schedule = Field(Cron("0 0 * * *"), description="When an RDB snapshot is taken, in `time_zone`.")
    destination: BucketUrl = Field("s3://backups/redis/", description="Where the repository lies.")
    retention: Retention = Field(timedelta(days=7), description="How long snapshots are kept. A bare number is days.")


class Backup(Block):
    """What is backed up, when, where to, and for how long it is kept. A flat block is the vector store's."""

    database: DatabaseBackup = DatabaseBackup()
    vectors: VectorBackup = VectorBackup()
    redis: RedisBackup | None = Field(
        None, description="RDB snapshots of Redis, every logical database in one; null: a cache, which needs none."
    )


class Encryption(Block):
    """Client-side encryption of backups with age."""

    recipients: tuple[Recipient, ...] = Field(
        (), description="Public keys that can open the backups; empty means no encryption, which every backup records."
    )
    identity: Secret | None = Field(
        None, description="Reference to the age key (AGE-SECRET-KEY-1...) that opens backups for restore proofs."
    )


class RetentionRules(Block):
    """Limits on what an expiry may remove."""

    max_expiry_ratio: Ratio = Field(
        0.5, description="An expiry that would remove a larger part is refused unless it is accepted (0 to 1)."
    )
    left_over_grace: Duration = Field(
        timedelta(hours=24), description="Age of the last heartbeat at which an unfinished backup is a left-over."
    )
    proof_max_age: Retention = Field(
        timedelta(days=30), description="Age at which the last proven backup is proven again. A bare number is days."
    )


class Proof(Block):
    """Restore proofs: each backup is restored into a throwaway server and compared."""

    schedule: Schedule = Field(Cron("30 0 * * *"), description="When unproven backups are proven, in `time_zone`.")
    sample_points: Count = Field(5000, le=10_000_000, description="Vectors compared in each proof of a collection.")
    timeout: Duration = Field(timedelta(hours=1), description="A proof that takes longer leaves the backup unproven.")


class Objectives(Block):
    """What the stack promises. The page `recoverability` compares it with what could be restored now."""

    rpo: Duration | None = Field(
        None,
        description="Most recent work that may be lost; null: what the schedule of each backup promises, its longest "
        "gap and two hours.",
    )
    rto: Duration = Field(
        timedelta(hours=1), description="Longest time of a restore, predicted from the proofs of the last backups."
    )


class Drills(Block):
    """Rehearsals, on a disposable copy and of this system. Each leaves a score, by which `objectives` are judged."""

    failover: ScheduleOrOff = Field(
        Cron("0 4 * * 6"),
        description="When the primary of a small copy is killed and failed over, in `time_zone`; off.",
    )
    recovery: ScheduleOrOff = Field(
        Cron("0 5 * * 6"), description="When the newest backups are restored and thrown away, in `time_zone`; off."
    )
    switchover: ScheduleOrOff = Field(
        None,
        description="When primary and standby of this system exchange their roles, in `time_zone`: about a second "
        "without writes; off.",
    )
