"""`<state_dir>/watch/health.sqlite`: what the prober found, small and bounded, readable while it is written.

    probes    one row a probe: what it asks, its condition now, the last verdict
    changes   one row for each change of state
    spans     for each probe and five minutes: seconds in each state, verdicts, latency
    notes     what holds for the prober as a whole, as JSON by name

Seconds come from a monotonic clock and are written into the five minutes of the wall clock, so that a clock that jumps
loses no time and invents none. One writer; a reader sees whole transactions. A file that is damaged is set aside, and a
new one begun: history may be lost, probing may not stop. A disk that is full damages nothing, so nothing is set aside.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.health.states import Condition, ProbeVerdict, State, TimeInStates, condition_now
from synapse_ops.errors import IntegrityError, Refused, Unreachable
from synapse_ops.operations.health.asker import Probe

FORMAT = 1
SPAN_S = 300
LEAST_FREE_BYTES = 1024**2  # the history grows by less in an hour

_SCHEMA = f"""
create table if not exists probes (
  name text primary key, position integer not null, kind text not null, target text not null,
  interval_s real not null, timeout_s real not null, is_current integer not null default 1,
  state text not null, since_s real not null, reason text not null, recent text not null,
  at_s real, verdict text, verdict_reason text, latency_s real, measurements text not null default '{{}}');
create table if not exists changes (
  id integer primary key autoincrement, probe text not null, at_s real not null,
  old text not null, new text not null, reason text not null);
create index if not exists changes_by_time on changes (at_s);
create table if not exists spans (
  probe text not null, start_s integer not null, healthy_s real not null default 0, degraded_s real not null default 0,
  unknown_s real not null default 0, failed_s real not null default 0, verdicts integer not null default 0,
  latency_sum_s real not null default 0, latencies integer not null default 0, latency_max_s real not null default 0,
  primary key (probe, start_s)) without rowid;
create index if not exists spans_by_time on spans (start_s);
create table if not exists notes (name text primary key, value text not null);
pragma user_version = {FORMAT};
"""


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """One verdict to be kept. elapsed_s: time since the verdict before, spent in `before`; 0 for the first.

    at: aware UTC, our wall clock. lapsed: the unknown span in between, when no probe ran for longer than was due.
    """

    probe: str
    at: datetime
    verdict: ProbeVerdict
    before: Condition
    after: Condition
    elapsed_s: float
    lapsed: Condition | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state. number: grows by time, never used twice."""

    number: int
    probe: str
    at: datetime
    old: State
    new: State
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """What is known of one probe. at: of the last verdict; None before the first."""

    name: str
    kind: str
    target: str
    interval_s: float
    timeout_s: float
    condition: Condition
    at: datetime | None
    verdict: State | None
    verdict_reason: str
    latency_s: float | None
    measurements: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Span:
    """Some time of one probe, five minutes or a sum of them. latency_mean_s: None without an answer."""

    time: TimeInStates
    verdicts: int
    latency_mean_s: float | None
    latency_max_s: float


def history_file(state_dir: Path) -> Path:
    """Return where the history of a state directory lies."""
    return state_dir / "watch" / "health.sqlite"


class HistoryWriter:
    """The one writer. Not safe to share between threads that write at once. Raises sqlite3.Error on a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as fault:
            if not is_damage(fault):
                raise
            self._begin_again()

    def set_aside(self) -> None:
        """Keep the damaged file as `.damaged`, in place of an older one, and go on with a new, empty one."""
        self._connection.close()
        self._begin_again()

    def _begin_again(self) -> None:
        self._path.replace(self._path.with_suffix(".damaged"))
        for tail in ("-wal", "-shm"):
            self._path.with_name(self._path.name + tail).unlink(missing_ok=True)
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("begin immediate")
        try:
            yield self._connection
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    def set_probes(self, probes: Sequence[Probe], conditions: Mapping[str, Condition]) -> None:
        """Make these the probes that are shown; what others left stays until it is pruned.

        A state that is not the stored one began while no prober wrote: that is a change, too.
        """
        with self._transaction() as connection:
            stored = dict(connection.execute("select name, state from probes"))
            for name, condition in conditions.items():
                if stored.get(name, condition.state) != condition.state:
                    _add_change(connection, name, State(stored[name]), condition)
            connection.execute("update probes set is_current = 0")
            connection.executemany(
                "insert into probes"
                " (name, position, kind, target, interval_s, timeout_s, state, since_s, reason, recent)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (name) do update set position = excluded.position,"
                " kind = excluded.kind, target = excluded.target, interval_s = excluded.interval_s, is_current = 1,"
                " timeout_s = excluded.timeout_s, state = excluded.state, since_s = excluded.since_s,"
                " reason = excluded.reason, recent = excluded.recent",
                [
                    (
                        *(probe.name, number, probe.kind, probe.target, probe.interval_s, probe.timeout_s),
                        *_condition_columns(conditions[probe.name]),
                    )
                    for number, probe in enumerate(probes)
                ],
            )

    def store(self, verdicts: Sequence[StoredVerdict]) -> None:
        """Keep verdicts, the oldest first, in one transaction."""
        with self._transaction() as connection:
            for stored in verdicts:
                at_s, verdict = stored.at.timestamp(), stored.verdict
                connection.execute(
                    "update probes set state = ?, since_s = ?, reason = ?, recent = ?, at_s = ?, verdict = ?,"
                    " verdict_reason = ?, latency_s = ?, measurements = ? where name = ?",
                    (
                        *_condition_columns(stored.after),
                        at_s,
                        verdict.state,
                        verdict.reason,
                        verdict.latency_s,
                        json.dumps(dict(verdict.measurements)),
                        stored.probe,
                    ),
                )
                _add_span(connection, stored, int(at_s // SPAN_S) * SPAN_S)
                before = stored.before
                if stored.lapsed is not None and stored.lapsed.state is not before.state:
                    _add_change(connection, stored.probe, before.state, stored.lapsed)
                    before = stored.lapsed
                if stored.after.state is not before.state:
                    _add_change(connection, stored.probe, before.state, stored.after)

    def set_note(self, name: str, value: Any) -> None:
        """Keep one JSON value by name."""
        with self._transaction() as connection:
            connection.execute("insert or replace into notes values (?, ?)", (name, json.dumps(value)))

    def prune(self, before: datetime) -> int:
        """Remove history before an aware time; return the rows removed: changes, spans and former probes."""
        with self._transaction() as connection:
            limit_s = before.timestamp()
            removed = connection.execute("delete from changes where at_s < ?", (limit_s,)).rowcount
            removed += connection.execute("delete from spans where start_s < ?", (limit_s,)).rowcount
            gone = "delete from probes where is_current = 0 and coalesce(at_s, 0) < ?"
            return removed + connection.execute(gone, (limit_s,)).rowcount


def _condition_columns(condition: Condition) -> tuple[str, float, str, str]:
    return condition.state, condition.since.timestamp(), condition.reason, ",".join(condition.recent)


def is_damage(fault: sqlite3.Error) -> bool:
    """Return whether SQLite reports the file as damaged or not a database; a full or slow disk is neither."""
    return getattr(fault, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _add_change(connection: sqlite3.Connection, probe: str, old: State, after: Condition) -> None:
    connection.execute(
        "insert into changes (probe, at_s, old, new, reason) values (?, ?, ?, ?, ?)",
        (probe, after.since.timestamp(), old, after.state, after.reason),
    )


def _add_span(connection: sqlite3.Connection, stored: StoredVerdict, start_s: int) -> None:
    latency = stored.verdict.latency_s
    column = f"{stored.before.state}_s"  # one of the four words of State
    connection.execute(
        f"insert into spans (probe, start_s, {column}, verdicts, latency_sum_s, latencies, latency_max_s)"  # noqa: S608
        " values (?, ?, ?, 1, ?, ?, ?) on conflict (probe, start_s) do update set"
        f" {column} = {column} + excluded.{column},"
        " verdicts = verdicts + 1, latency_sum_s = latency_sum_s + excluded.latency_sum_s,"
        " latencies = latencies + excluded.latencies, latency_max_s = max(latency_max_s, excluded.latency_max_s)",
        (stored.probe, start_s, stored.elapsed_s, latency or 0.0, int(latency is not None), latency or 0.0),
    )


class HistoryReader:
    """Reads the history, also while it is written and after its prober has gone. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError when there is none."""
        if not path.exists():
            raise FileNotFoundError(path)
        self._connection = sqlite3.connect(path, timeout=5, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("pragma query_only = 1")

    def __enter__(self) -> HistoryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def probes(self) -> list[ProbeRow]:
        """Return the current probes in the prober's order."""
        rows = self._connection.execute("select * from probes where is_current = 1 order by position")
        return [_probe_row(row) for row in rows]

    def changes(self, *, after: int = 0, since: datetime | None = None, limit: int = 1000) -> list[Change]:
        """Return changes of state after a number and since a time, the oldest first."""
        wanted = (after, since.timestamp() if since is not None else 0.0, limit)
        rows = self._connection.execute("select * from changes where id > ? and at_s >= ? order by id limit ?", wanted)
        return [
            Change(row["id"], row["probe"], _moment(row["at_s"]), State(row["old"]), State(row["new"]), row["reason"])
            for row in rows
        ]

    def newest_change(self) -> int:
        """Return the number of the newest change ever, 0 when there was none."""
        row = self._connection.execute("select max(seq) from sqlite_sequence where name = 'changes'").fetchone()
        return int(row[0] or 0)

    def spans(self, since: datetime, until: datetime) -> dict[str, Span]:
        """Return the sums of each probe over whole five minutes that began in [since, until)."""
        rows = self._connection.execute(
            "select probe, sum(healthy_s), sum(degraded_s), sum(unknown_s), sum(failed_s), sum(verdicts),"
            " sum(latency_sum_s), sum(latencies), max(latency_max_s) from spans where start_s >= ? and start_s < ?"
            " group by probe",
            (since.timestamp(), until.timestamp()),
        )
        return {
            row[0]: Span(TimeInStates(*row[1:5]), row[5], row[6] / row[7] if row[7] else None, row[8]) for row in rows
        }

    def note(self, name: str) -> Any:
        """Return a value kept by `set_note`, None when there is none."""
        row = self._connection.execute("select value from notes where name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row is not None else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _probe_row(row: sqlite3.Row) -> ProbeRow:
    recent = tuple(State(word) for word in row["recent"].split(",") if word)
    return ProbeRow(
        name=row["name"],
        kind=row["kind"],
        target=row["target"],
        interval_s=row["interval_s"],
        timeout_s=row["timeout_s"],
        condition=Condition(State(row["state"]), _moment(row["since_s"]), row["reason"], recent),
        at=_moment(row["at_s"]) if row["at_s"] is not None else None,
        verdict=State(row["verdict"]) if row["verdict"] else None,
        verdict_reason=row["verdict_reason"] or "",
        latency_s=row["latency_s"],
        measurements=json.loads(row["measurements"]),
    )


@contextlib.contextmanager
def reading_history(state_dir: Path) -> Iterator[HistoryReader]:
    """Yield the history of a state directory.

    Raises Refused when no prober has run there, IntegrityError for a damaged file, Unreachable for one that cannot be
    read now.
    """
    path = history_file(state_dir)
    try:
        with HistoryReader(path) as history:
            yield history
    except FileNotFoundError:
        raise Refused(
            f"no prober has run for {state_dir}",
            hint="`synapse-ops local up` and `synapse-ops ui` start one; docs/health.md shows it as a service.",
        ) from None
    except sqlite3.Error as fault:
        if is_damage(fault):
            raise IntegrityError(
                f"the history {path} is damaged: {fault}", hint="A running prober sets it aside and starts a new one."
            ) from fault
        raise Unreachable(f"could not read the history {path}: {fault}{full_disk(state_dir)}") from fault


def full_disk(state_dir: Path) -> str:
    """Return that verdicts cannot be stored, or "": a prober that runs on a full disk is as silent as one that died."""
    if shutil.disk_usage(state_dir).free >= LEAST_FREE_BYTES:
        return ""
    return f"; no verdict can be stored: the disk of {state_dir} is full"


def believed_condition(row: ProbeRow, now: datetime) -> Condition:
    """Return a probe's condition as it may be believed now: unknown once its next verdict is overdue."""
    interval, timeout = timedelta(seconds=row.interval_s), timedelta(seconds=row.timeout_s)
    return condition_now(row.condition, row.at, interval=interval, timeout=timeout, now=now)


def kept_conditions(rows: Iterable[ProbeRow], now: datetime) -> dict[tuple[str, str], Condition]:
    """Return the conditions that a prober goes on from, by name and target: another target is another thing.

    What was not asked for longer than was due is unknown: no state is reported for a time without probes.
    """
    return {(row.name, row.target): believed_condition(row, now) for row in rows}
