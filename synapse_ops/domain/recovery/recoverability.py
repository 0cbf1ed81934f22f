"""What can be restored now, to when, in how long, and whether that is what was promised. Pure: time is an argument.

One row for each subject. A row judges `Evidence` (what lies in the repository) by `Objectives` (what was promised), so
that another way of backup joins as evidence of its own: it says its first and last moment, its faults, its time.
Only proven backups count. Unknown is never good: what nobody could read or measure misses the objective.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from synapse_ops.domain.backup.ages import data_time
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.faults import fault_of, newest_proof_fault_of, warning_of
from synapse_ops.domain.backup.restore_estimate import predict_from
from synapse_ops.domain.backup.retention import counts_as_proven
from synapse_ops.domain.durations import format_age, format_when
from synapse_ops.domain.recovery.window_picture import Moment, PictureRow, Span, draw_window

MOST_NAMES = 4  # in a sentence; the table names all


@dataclass(frozen=True, slots=True)
class Objectives:
    """What one subject is held to. rpo: most work that may be lost. rto: longest time of a restore."""

    rpo: timedelta
    rto: timedelta


@dataclass(frozen=True, slots=True)
class NextStep:
    """What a schedule does next about a subject: `backup`, `proof`."""

    what: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the backups of one subject.

    from_at, to_at: the first and the last moment that can be restored; None: none. points: how many there are between;
    is_continuous: every moment between.
    moments: what each backup restores, and whether it is proven. spans: between which every moment can be restored,
    where that was asked for. backup_id: what restores the last one. restore_s: predicted by what was measured.
    proven_at: of the newest proof that passed. faults: what stands against it; warnings: what does not yet. unread: why
    nothing is known, or "".
    """

    from_at: datetime | None = None
    to_at: datetime | None = None
    points: int = 0
    is_continuous: bool = False
    moments: tuple[Moment, ...] = ()
    spans: tuple[Span, ...] = ()
    backup_id: str = ""
    restore_s: float | None = None
    proven_at: datetime | None = None
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unread: str = ""


def evidence_of(entries: Sequence[CatalogEntry], proof_max_age: timedelta, now: datetime) -> Evidence:
    """Return what whole backups of one subject prove. entries: of all its identities, newest first."""
    proven = [entry for entry in entries if counts_as_proven(entry, now)]
    judged = (fault_of(entries, proof_max_age, now), newest_proof_fault_of(entries, proof_max_age, now))
    warning = warning_of(entries, proof_max_age, now)
    faults = tuple(dict.fromkeys(fault for fault in judged if fault))
    moments = tuple((data_time(entry), counts_as_proven(entry, now)) for entry in entries)
    found = Evidence(moments=moments, faults=faults, warnings=(warning,) if warning else ())
    if not proven:
        return found
    newest, oldest = max(proven, key=data_time), min(proven, key=data_time)
    return replace(
        found,
        from_at=data_time(oldest),
        to_at=data_time(newest),
        points=len(proven),
        backup_id=newest.place.backup_id,
        restore_s=predict_from(entries, newest.source_size_bytes),
        proven_at=max(entry.proven_at for entry in proven if entry.proven_at is not None),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One subject, judged. word, subject: as a person names it, `database/NAME`. label: in a sentence.

    objectives: None where it is only kept, because the spec or the server no longer names it; then nothing is missed.
    window: of its retention.
    """

    word: str
    subject: str
    label: str
    evidence: Evidence
    objectives: Objectives | None
    next_step: NextStep | None
    at: datetime
    window: timedelta = timedelta(0)

    @property
    def name(self) -> str:
        return self.word if self.subject == self.word else f"{self.word}/{self.subject}"

    @property
    def lost_now(self) -> timedelta | None:
        """What would be lost if the server were gone now; None: everything."""
        return None if self.evidence.to_at is None else max(timedelta(0), self.at - self.evidence.to_at)

    @property
    def proof_age(self) -> timedelta | None:
        return None if self.evidence.proven_at is None else self.at - self.evidence.proven_at

    @property
    def misses(self) -> tuple[str, ...]:
        """Each objective that is missed, and what stands against the backups; empty when all is as promised."""
        evidence, objectives = self.evidence, self.objectives
        if objectives is None:
            return ()
        if evidence.to_at is None or self.lost_now is None:
            return evidence.faults or (evidence.unread or "no backup of it is proven",)
        found = []
        if self.lost_now > objectives.rpo:
            lost, most = format_age(self.lost_now), format_age(objectives.rpo)
            found.append(f"{lost} of work would be lost now, and at most {most} may be")
        if evidence.restore_s is None:
            found.append("how long a restore takes was never measured")
        elif evidence.restore_s > objectives.rto.total_seconds():
            takes, most = format_age(timedelta(seconds=evidence.restore_s)), format_age(objectives.rto)
            found.append(f"a restore takes about {takes}, and at most {most} may pass")
        return (*found, *evidence.faults)

    @property
    def is_met(self) -> bool:
        return not self.misses

    def sentence(self, time_zone: str) -> str:
        """Return what a tired person needs: to when, in how long, proven when; or why not."""
        evidence = self.evidence
        if evidence.unread:
            return f"It is unknown whether {self.label} can be restored: {evidence.unread}."
        if evidence.to_at is None:
            return _ended(f"You cannot restore {self.label}: {'; '.join(self.misses or evidence.faults)}")
        good = _restorable(self.label, [self], time_zone)
        return _ended(f"{good} But {'; '.join(self.misses)}") if self.misses else good


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


@dataclass(frozen=True, slots=True)
class Recoverability:
    """All subjects at one moment, in the order of kinds and names."""

    rows: tuple[Row, ...]
    at: datetime
    time_zone: str

    @property
    def missed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.is_met)

    @property
    def is_met(self) -> bool:
        """Whether every subject is as promised; where there is nothing to judge, nothing is promised and kept."""
        return not self.missed and any(row.objectives is not None for row in self.rows)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(f"{row.name}: {words}" for row in self.rows if row.objectives for words in row.evidence.warnings)

    @property
    def sentence(self) -> str:
        """The whole in a few sentences: what is wrong first, then to when the others can be restored."""
        missed = self.missed
        said = [row.sentence(self.time_zone) for row in missed[:MOST_NAMES]]
        if len(missed) > MOST_NAMES:
            said.append(f"{len(missed) - MOST_NAMES} more miss their objective.")
        good = [row for row in self.rows if row.is_met and row.objectives is not None]
        if good:
            said.append(_restorable(_names([row.label for row in good]), good, self.time_zone))
        return " ".join(said) or "There is nothing to restore: no subject of a backup is known."

    def picture(self) -> str:
        """Return the restorable window as SVG, a row for each kind."""
        rows = []
        for word in dict.fromkeys(row.word for row in self.rows):
            of_kind = self.of(word).rows
            moments = tuple(moment for row in of_kind for moment in row.evidence.moments)
            spans = tuple(span for row in of_kind for span in row.evidence.spans)
            rows.append(PictureRow(word, of_kind[0].window, moments, spans))
        return draw_window(rows, self.at)

    def of(self, word: str, subject: str | None = None) -> Recoverability:
        """Return the same with the rows of one kind, or of one subject of it."""
        rows = tuple(row for row in self.rows if row.word == word and subject in {None, row.subject})
        return Recoverability(rows, self.at, self.time_zone)


def _names(labels: Sequence[str]) -> str:
    if len(labels) > MOST_NAMES:
        return f"the other {len(labels)}"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _restorable(label: str, rows: Sequence[Row], time_zone: str) -> str:
    """Return the sentence of some rows that can be restored: by the oldest moment, the longest time, the oldest proof.

    rows: at least one, each with a moment.
    """
    evidence = [row.evidence for row in rows]
    at, later, most = rows[0].at, " or later" if len(rows) > 1 else "", " at most" if len(rows) > 1 else ""
    to_at = min(one.to_at for one in evidence if one.to_at is not None)
    proven_at = min((one.proven_at for one in evidence if one.proven_at is not None), default=None)
    known = [one.restore_s for one in evidence if one.restore_s is not None]
    said = [f"You can restore {label} to {format_when(to_at, at, time_zone)}{later}"]
    said += [f"it takes about {format_age(timedelta(seconds=max(1.0, max(known))))}{most}"] if known else []
    said += [f"proven at {format_when(proven_at, at, time_zone)}{later}"] if proven_at is not None else []
    return "; ".join(said) + "."


COLUMNS = ("what", "promise", "restorable")  # few, of short words: a page 1,400 pixels wide has room for no more


def table_rows(rows: Iterable[Row], time_zone: str) -> list[dict[str, str]]:
    """Return the rows as text by `COLUMNS`, the same on every page; what is missed comes first."""
    ordered = sorted(rows, key=lambda row: row.is_met)  # stable
    return [_as_text(row, time_zone) for row in ordered]


def _as_text(row: Row, time_zone: str) -> dict[str, str]:
    evidence, step = row.evidence, row.next_step

    def when(moment: datetime) -> str:
        return format_when(moment, row.at, time_zone)

    judged = "not judged" if row.objectives is None else "met" if row.is_met else "MISSED"
    wrong = "; ".join((*row.misses, *evidence.warnings))
    promise = [f"{judged}: {wrong}" if wrong else judged]
    promise += [f"next {step.what} {when(step.at)}"] if step is not None else []
    restorable = ["nothing"]
    if evidence.to_at is not None and evidence.from_at is not None and row.lost_now is not None:
        restorable = [f"to {when(evidence.to_at)}, {format_age(row.lost_now)} lost now"]
        if evidence.is_continuous or evidence.points > 1:
            which = "every moment" if evidence.is_continuous else f"{evidence.points} moments"
            restorable.append(f"{which} from {when(evidence.from_at)}")
        known = evidence.restore_s is not None
        restorable.append(f"takes about {format_age(_whole(evidence.restore_s or 0))}" if known else "takes: not known")
    if evidence.proven_at is not None and row.proof_age is not None:
        restorable.append(f"proven {when(evidence.proven_at)}, {format_age(row.proof_age)} ago")
    return {"what": row.name, "promise": "; ".join(promise), "restorable": "; ".join(restorable)}


def _whole(seconds: float) -> timedelta:
    return timedelta(seconds=max(1, round(seconds)))


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as JSON: times in ISO 8601, spans in seconds; null is not known, or none."""
    evidence, objectives, step = row.evidence, row.objectives, row.next_step
    return {
        "kind": row.word,
        "subject": row.subject,
        "from_at": _iso(evidence.from_at),
        "to_at": _iso(evidence.to_at),
        "moments": None if evidence.is_continuous else evidence.points,
        "backup_id": evidence.backup_id or None,
        "lost_now_s": row.lost_now.total_seconds() if row.lost_now is not None else None,
        "predicted_restore_s": evidence.restore_s,
        "proven_at": _iso(evidence.proven_at),
        "rpo_s": objectives.rpo.total_seconds() if objectives is not None else None,
        "rto_s": objectives.rto.total_seconds() if objectives is not None else None,
        "objectives_met": row.is_met if objectives is not None else None,
        "wrong": [*row.misses, *evidence.warnings],
        "next_step": step.what if step is not None else None,
        "next_step_at": _iso(step.at) if step is not None else None,
    }


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None
