"""`proof-<time>.json`: what a restore found; `attempt-<time>.json`: a restore that could not be attempted."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import Document, LsnText, ObjectRecord, Part, Sha256

SHOWN_DIGITS = 8  # of a digest, in a table for people: two are told apart by fewer


class Verdict(StrEnum):
    """What a proof found. Only `PROVEN` counts; everything else satisfies nothing."""

    PROVEN = "proven"
    DIFFERS = "differs"  # restored, compared, and not equal
    UNPROVEN = "unproven"  # could not be completed: damage, time-out, an error line of pg_restore
    NOT_ATTEMPTED = "not-attempted"  # does not concern the backup: the host lacked a key, programs or space


class SnapshotFindings(Part):
    """What a proof of a collection found in the copy; the counts are exact.

    points_digest: sha256 over all points. still_points: held to what the live collection said, and equal where proven.
    window_points: known points that moved while the snapshot was taken, held to nothing. passing_points: in the copy,
    and in no reading of the live collection. recall_at_10: of the canary queries that were steady; None without any.
    """

    engine_version: str
    segment_versions: tuple[str, ...]
    shard_points: dict[int, int]
    points_digest: Sha256
    scope: Literal["all", "sample"]
    still_points: int = Field(ge=0)
    window_points: int = Field(ge=0)
    passing_points: int = Field(ge=0)
    recall_at_10: float | None = Field(default=None, ge=0, le=1)

    def compared(self) -> dict[str, int | float | str]:
        recall = {} if self.recall_at_10 is None else {"recall_at_10": self.recall_at_10}
        return {
            "points": sum(self.shard_points.values()),
            "still_points": self.still_points,
            "window_points": self.window_points,
            "passing_points": self.passing_points,
            **recall,
            "points_digest": self.points_digest,
        }


class RdbFindings(Part):
    """What a proof of an RDB snapshot found in the throwaway server that loaded it.

    keys: by logical database. expired_keys: had a time to live that ended before they were looked at. dataset_digest:
    Redis's own digest (DEBUG DIGEST) over all that was loaded. still_keys: held to what the live server said, and equal
    where proven. by_value: of those, the ones whose values were compared; of the others their types were.
    window_keys: known keys that moved while the snapshot was taken, held to nothing. passing_keys: in the copy, and in
    no reading of the live server.
    """

    keys: dict[int, int]
    expired_keys: int = Field(ge=0)
    dataset_digest: str
    scope: Literal["all", "sample"]
    still_keys: int = Field(ge=0)
    by_value: int = Field(ge=0)
    window_keys: int = Field(ge=0)
    passing_keys: int = Field(ge=0)

    def compared(self) -> dict[str, int | float | str]:
        return {
            "keys": sum(self.keys.values()),
            "still_keys": self.still_keys,
            "keys_compared_by_value": self.by_value,
            "window_keys": self.window_keys,
            "passing_keys": self.passing_keys,
            "expired_keys": self.expired_keys,
            "dataset_digest": self.dataset_digest,
        }


class DatabaseContent(Part):
    """What one database of a recovered cluster holds: two proofs that reached the same position say the same.

    content_digest: of its rows, sequences and large objects. structure_digest: of everything else that has a name.
    """

    name: str
    tables: int = Field(ge=0)
    rows: int = Field(ge=0)
    content_digest: Sha256
    structure_digest: Sha256


class ExactComparison(Part):
    """What a recovered cluster was compared with, row for row: a standby whose replay stood at the same position.

    rows, tables: of all databases, as the standby had them; equal where the proof says `proven`.
    """

    lsn: LsnText
    node: str
    tables: int = Field(ge=0)
    rows: int = Field(ge=0)


class BaseFindings(Part):
    """What a proof of a base backup found in the recovered cluster.

    target: as `--until` has it. end_lsn: where replay ended. wal_bytes: replayed. databases: checked, each of them.
    last_commit_at: of the last transaction that was replayed, by the source's clock; None: none was. rpo_observed_s:
    how long before the archive was read that was, where the target is its end: what would have been lost.
    contents: of each, at the end of replay; held to nothing. exact: what was compared on the way; None: no rows were.
    """

    target: str
    end_lsn: LsnText
    timeline: int = Field(ge=1)
    wal_bytes: int = Field(ge=0)
    databases: tuple[str, ...]
    contents: tuple[DatabaseContent, ...] = ()
    exact: ExactComparison | None = None
    last_commit_at: AwareDatetime | None = None
    rpo_observed_s: float | None = Field(default=None, ge=0)

    @property
    def outcome(self) -> str:
        if self.exact is None:
            return "restored and checked, no rows compared"
        return f"restored and compared row for row with the standby {self.exact.node} at {self.exact.lsn}"

    def compared(self) -> dict[str, int | float | str]:
        return {
            "compared": self.outcome,
            "target": self.target,
            "end_lsn": self.end_lsn,
            "wal_bytes": self.wal_bytes,
            "databases": ", ".join(self.databases),
            "rows": sum(one.rows for one in self.contents),
            **({"compared_rows": self.exact.rows} if self.exact is not None else {}),
            **({"last_commit_at": self.last_commit_at.isoformat()} if self.last_commit_at is not None else {}),
            **({"rpo_observed_s": self.rpo_observed_s} if self.rpo_observed_s is not None else {}),
        }

    def tables(self) -> dict[str, list[dict[str, int | float | str]]]:
        return {
            "contents": [
                {
                    "database": one.name,
                    "tables": one.tables,
                    "rows": one.rows,
                    "content": one.content_digest[:SHOWN_DIGITS],
                    "structure": one.structure_digest[:SHOWN_DIGITS],
                }
                for one in self.contents
            ]
        }


class ProofRecord(Document):
    """`proof-<time>.json`: a restore that was carried out and compared. `attempt-<time>.json`: one that never began.

    backup_sha256: sha256 of the stored bytes of backup.json at that time; objects: as read, with size, ETag and sha256.
    A proof is void when backup.json or the listing of any object differs from what it names.
    differences: first lines of what differed, "table public.documents: 11 rows, expected 12"; empty when proven.
    restore_s: from the first byte read to a server that answers, comparison excluded. predicted_restore_s: what was
    predicted before it ran, None for the first of its size. snapshot: of a collection only. rdb: of an RDB
    snapshot only. not_in_backup: further names of what the backup does not carry, as the copy showed; not in version 1.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (1, 2)
    format_version: int = Field(default=2, strict=True)
    backup_id: str
    verdict: Verdict
    backup_sha256: Sha256
    objects: tuple[ObjectRecord, ...]
    started_at: AwareDatetime
    finished_at: AwareDatetime
    restore_s: float | None = Field(default=None, ge=0)
    predicted_restore_s: float | None = Field(default=None, ge=0)
    phase_s: dict[str, float] = Field(default_factory=dict)
    server_version: str | None = None
    amcheck_relations: int = Field(default=0, ge=0)
    snapshot: SnapshotFindings | None = None
    rdb: RdbFindings | None = None
    base: BaseFindings | None = None
    reason: str = ""
    differences: tuple[str, ...] = ()
    correlation_id: str = ""
    not_in_backup: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        fields = super().body()
        if self.format_version == 1:
            del fields["not_in_backup"]
        if self.base is None:
            del fields["base"]  # of a kind that came later: proofs of the others stay as they are
        return fields

    @property
    def outcome(self) -> str:
        """What was done to the copy where it is proven."""
        return "restored and found equal" if self.base is None else self.base.outcome

    def compared(self) -> dict[str, int | float | str]:
        """Return what was compared, by names that keep their meaning: the asset page plots them."""
        for findings in (self.snapshot, self.rdb, self.base):
            if findings is not None:
                return {**findings.compared()}
        return {"amcheck_relations": self.amcheck_relations}

    def tables(self) -> dict[str, list[dict[str, int | float | str]]]:
        """Return tables for the asset page, by name: rows of equal columns."""
        found = {} if self.base is None else self.base.tables()
        took: list[dict[str, int | float | str]]
        took = [{"phase": name, "seconds": value} for name, value in self.phase_s.items()]
        return {"phases": took, **found}
