"""Which backups of a repository may expire, and why each of the others stays. Pure: clocks are arguments.

"30 days" means that every moment of the last 30 days is restorable. For logical dumps that is: every dump of the window
stays, and so does the newest *proven* one older than it, because it is what restores to the window's first moment. Only
what is older than that one may go. So whatever expires has a newer proven backup of its own group (identity, kind and
subject) beside it, the last proven one never expires, and a newer one that is not proven protects nothing.

Unknown is never good: an unproven, damaged, unreadable or future-dated backup satisfies no rule for another one, and
nothing expires while our clock and the store's differ, because then no age is known.
Source of the rules: docs/repository-format.md, "Retention".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import Any, Self

from synapse_ops.domain.backup.catalog import HOLD_GRACE, CatalogEntry
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace
from synapse_ops.domain.durations import format_days

CLOCK_TOLERANCE = timedelta(minutes=5)  # NTP keeps hosts within a second; signatures of S3 fail beyond 15 minutes
LEAST_LEFT_OVER_GRACE = timedelta(minutes=20)  # twice the 10 min for which a running dump bears a silent store


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The spec's `backup.<kind>.retention` and `retention` block.

    window: every moment of it stays restorable. max_expiry_ratio: 0 to 1, the largest part of one subject's backups
    that one run removes without being asked. left_over_grace: age of the last heartbeat, never under 20 minutes.
    proof_max_age: past it the last proven backup is due for another proof; the old proof still counts here.
    """

    window: timedelta
    max_expiry_ratio: float = 0.5
    left_over_grace: timedelta = timedelta(hours=24)
    proof_max_age: timedelta = timedelta(days=30)

    @classmethod
    def of(cls, spec: Any, window: timedelta) -> Self:
        """Return the policy of one kind. spec: `synapse_ops.spec.Spec`, which decisions may not import."""
        rules = spec.retention
        return cls(
            window=window,
            max_expiry_ratio=rules.max_expiry_ratio,
            left_over_grace=rules.left_over_grace,
            proof_max_age=rules.proof_max_age,
        )

    def as_json(self) -> dict[str, float]:
        """Return the limits as plans carry them; durations in seconds."""
        return {
            "window_s": self.window.total_seconds(),
            "max_expiry_ratio": self.max_expiry_ratio,
            "left_over_grace_s": self.left_over_grace.total_seconds(),
            "proof_max_age_s": self.proof_max_age.total_seconds(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, float]) -> Self:
        return cls(
            window=timedelta(seconds=body["window_s"]),
            max_expiry_ratio=body["max_expiry_ratio"],
            left_over_grace=timedelta(seconds=body["left_over_grace_s"]),
            proof_max_age=timedelta(seconds=body["proof_max_age_s"]),
        )


@dataclass(frozen=True, slots=True)
class Clocks:
    """Two readings taken together: ours, and the Date of the store's reply (whole seconds)."""

    ours: datetime
    stores: datetime

    @property
    def differ(self) -> bool:
        return abs(self.ours - self.stores) > CLOCK_TOLERANCE

    @property
    def earlier(self) -> datetime:
        """The moment against which ages are taken: the earlier one makes everything younger, so keeps more."""
        return min(self.ours, self.stores)


class Rule(StrEnum):
    """Why an entry of a plan is what it is; stable words for JSON output."""

    CLOCKS_DIFFER = "clocks-differ"
    UNREADABLE = "unreadable"
    PINNED = "pinned"
    HELD = "held"
    FUTURE_DATED = "future-dated"
    LAST_PROVEN = "last-proven"
    IN_WINDOW = "in-window"
    NO_NEWER_PROVEN = "no-newer-proven"
    NEEDED = "needed"
    REACHES_BACK = "reaches-back"
    MAY_REACH_BACK = "may-reach-back"
    PAST_WINDOW = "past-window"
    LEFT_OVER = "left-over"
    IN_GRACE = "in-grace"
    ONLY_MARKERS = "only-markers"


@dataclass(frozen=True, slots=True)
class Decision:
    """One backup, whether it expires, and the reason in one line that holds no clock reading."""

    entry: CatalogEntry
    expires: bool
    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True)
class RatioExcess:
    """A group of which more than `max_expiry_ratio` would expire."""

    place: BackupPlace
    expiring: int
    total: int

    @property
    def ratio(self) -> float:
        return self.expiring / self.total


def taken_at(entry: CatalogEntry) -> datetime:
    """Return the moment that counts as a backup's age: the latest time it carries.

    A clock that stood wrong in one of them can then only make a backup look younger, which keeps it longer.
    """
    return max(moment for moment in (entry.started_at, entry.database_time, entry.finished_at) if moment is not None)


Carries = Callable[[CatalogEntry, datetime], bool]


def is_whole(entry: CatalogEntry, since: datetime) -> bool:
    """Return whether a backup alone restores its moment: all but base backups, which need their WAL up to `since`."""
    return entry.place.kind != KIND_BASE


def plan_retention(
    entries: Iterable[CatalogEntry], policy: RetentionPolicy, clocks: Clocks, carries: Carries = is_whole
) -> Iterator[Decision]:
    """Yield a decision for every backup, newest first within its group, groups in order of their place.

    entries: any order, any number of groups. carries: whether one older than the window restores the window's first
    moment, which it is given. The result depends on nothing else, not even on the order of `entries`.
    """
    groups: dict[tuple[str, ...], list[CatalogEntry]] = {}
    for entry in entries:
        groups.setdefault(_group(entry.place), []).append(entry)
    for key in sorted(groups):
        yield from _plan_group(groups[key], policy, clocks, carries)


def is_carrier(entry: CatalogEntry, policy: RetentionPolicy, clocks: Clocks, carries: Carries) -> bool:
    """Return whether a backup is proven, older than the window, and restores the window's first moment."""
    one = _aged(entry)
    return (
        _counts_as_proven(one, clocks.earlier)
        and _is_past_window(one, policy, clocks)
        and carries(entry, clocks.earlier - policy.window)
    )


def excesses(places: Sequence[tuple[BackupPlace, bool]], max_ratio: float) -> tuple[RatioExcess, ...]:
    """Return the groups of which more than `max_ratio` (0 to 1) would expire.

    places: every backup and whether it expires, any order. Result: in order of the groups.
    """
    ordered = sorted(places, key=lambda row: row[0])
    found = []
    for _, group in groupby(ordered, key=lambda row: _group(row[0])):
        rows = list(group)
        excess = RatioExcess(rows[0][0], sum(expires for _, expires in rows), len(rows))
        if excess.ratio > max_ratio:
            found.append(excess)
    return tuple(found)


def counts_as_proven(entry: CatalogEntry, now: datetime) -> bool:
    """Whether a backup may replace an older one: proven, readable, and none of its times is in the future."""
    return _counts_as_proven(_aged(entry), now)


@dataclass(frozen=True, slots=True, order=True)
class _Aged:
    """A backup with its age worked out once: reading the time in an id costs more than every rule together."""

    taken_at: datetime
    backup_id: str
    entry: CatalogEntry = field(compare=False)


def _aged(entry: CatalogEntry) -> _Aged:
    return _Aged(taken_at(entry), entry.place.backup_id, entry)


def _counts_as_proven(one: _Aged, now: datetime) -> bool:
    entry = one.entry
    return (
        entry.proven_at is not None
        and not entry.unreadable_reason
        and not entry.doubt
        and max(entry.proven_at, one.taken_at) <= now + CLOCK_TOLERANCE
    )


def _group(place: BackupPlace) -> tuple[str, str, str, str]:
    return (place.identity.system_identifier, place.identity.generation, place.kind, place.subject)


def _plan_group(
    group: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks, carries: Carries
) -> Iterator[Decision]:
    newest_first = sorted(map(_aged, group), reverse=True)
    proven = [one for one in newest_first if _counts_as_proven(one, clocks.earlier)]
    last = next(iter(proven), None)
    anchor = next((one for one in proven if is_carrier(one.entry, policy, clocks, carries)), None)
    decisions = [_decide(one, policy, clocks, last, anchor) for one in newest_first]
    needed = {name: row.entry.place.backup_id for row in decisions if not row.expires for name in row.entry.rests_on}
    for row in decisions:
        needed_by = needed.get(row.entry.place.backup_id)
        if row.expires and needed_by is not None:
            yield Decision(row.entry, False, Rule.NEEDED, f"backup {needed_by}, which stays, rests on it")
        else:
            yield row


def _is_past_window(one: _Aged, policy: RetentionPolicy, clocks: Clocks) -> bool:
    return clocks.earlier - one.taken_at >= policy.window


def _decide(one: _Aged, policy: RetentionPolicy, clocks: Clocks, last: _Aged | None, anchor: _Aged | None) -> Decision:
    untouchable = _untouchable(one, clocks)
    if untouchable is not None:
        return untouchable
    entry, window = one.entry, format_days(policy.window)
    if one is last:
        return Decision(entry, False, Rule.LAST_PROVEN, _last_proven_reason(entry, policy, clocks))
    if not _is_past_window(one, policy, clocks):
        return Decision(entry, False, Rule.IN_WINDOW, f"taken within the window of {window}")
    if last is None or last < one:
        return Decision(entry, False, Rule.NO_NEWER_PROVEN, f"older than {window}, but no newer backup is proven")
    if anchor is None:
        return Decision(
            entry, False, Rule.MAY_REACH_BACK, f"no proven backup restores the first of the last {window} yet"
        )
    if one is anchor:
        return Decision(entry, False, Rule.REACHES_BACK, f"newest proven one older than {window}: the window's start")
    if anchor < one:
        return Decision(
            entry, False, Rule.MAY_REACH_BACK, f"older than {window}, but newer than the proven {anchor.backup_id}"
        )
    return Decision(entry, True, Rule.PAST_WINDOW, f"older than {window}, and the newer {anchor.backup_id} is proven")


def _untouchable(one: _Aged, clocks: Clocks) -> Decision | None:
    """Return the decision for what stays whatever the policy says, or None."""
    entry = one.entry
    if clocks.differ:
        minutes = int(CLOCK_TOLERANCE.total_seconds() // 60)
        return Decision(
            entry, False, Rule.CLOCKS_DIFFER, f"our clock and the store's differ by more than {minutes} min"
        )
    if entry.pins:
        return Decision(entry, False, Rule.PINNED, "pinned: " + ", ".join(entry.pins))
    if is_held(entry.held_at, clocks):
        return Decision(entry, False, Rule.HELD, "held: a restore or proof is reading it")
    if entry.unreadable_reason:
        return Decision(entry, False, Rule.UNREADABLE, f"unknown is never removed: {entry.unreadable_reason}")
    if one.taken_at > clocks.earlier + CLOCK_TOLERANCE:
        moment = one.taken_at.isoformat(timespec="seconds")
        return Decision(entry, False, Rule.FUTURE_DATED, f"dated {moment}, which has not come yet")
    return None


def is_held(held_at: datetime | None, clocks: Clocks) -> bool:
    """Whether a reader renewed its hold lately. held_at: the store's clock, so judged by it."""
    return held_at is not None and clocks.stores - held_at <= HOLD_GRACE


def _last_proven_reason(entry: CatalogEntry, policy: RetentionPolicy, clocks: Clocks) -> str:
    reason = "the last proven backup never expires"
    if entry.proven_at is not None and clocks.earlier - entry.proven_at > policy.proof_max_age:
        reason += f"; its proof is older than {format_days(policy.proof_max_age)}, prove it again"
    return reason
