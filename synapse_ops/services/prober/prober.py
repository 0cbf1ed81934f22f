"""Runs every probe of the spec in force at its own interval, and stores the verdicts. Resident, without Dagster.

Each probe has its own task and clock, so that a probe that hangs delays no other. A verdict is stored at the timeout,
before a hanging probe has ended. Time between verdicts is monotonic: a wall clock that jumps changes no interval.
It depends on no server that it probes: all may be absent. A full disk costs history, not probing; a reserve is
released then, so that at least this is stored and shown.
A task that ends early ends `run` with its error: a prober with a dead task would otherwise look alive.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from synapse_ops.domain.health.alerts import ActiveAlert, Told, after_notification
from synapse_ops.domain.health.states import (
    OVERDUE_GRACE,
    WINDOW,
    Condition,
    ProbeVerdict,
    condition_now,
    initial_condition,
    next_condition,
)
from synapse_ops.errors import SynapseOpsError
from synapse_ops.manifests.monitoring.prober_names import prober_names
from synapse_ops.operations.health.active_alerts import NOTE, read_active_alerts
from synapse_ops.operations.health.asker import Asker, Probe
from synapse_ops.operations.health.history import (
    HistoryReader,
    HistoryWriter,
    StoredVerdict,
    history_file,
    is_damage,
    kept_conditions,
)
from synapse_ops.operations.health.server_probes import DISK
from synapse_ops.operations.spec_in_force import read_spec_in_force
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.stack_probes import stack_probes
from synapse_ops.services.prober.protection import read_protection
from synapse_ops.services.spec_watch import SpecWatch
from synapse_ops.systems.host.disk_reserve import DiskReserve, is_full
from synapse_ops.systems.probe_clients import HttpClients

FLUSH_S = 0.1  # verdicts of this long go into one transaction
BEAT_S = 1.0
PRUNE_EVERY_S = 3600.0
STEADY_S = 60.0  # a wall clock that moved further than this from the monotonic one removes no history
FIRST_READING_S = 5.0  # of the repository: servers that start with us are given their turn
SPREAD_S = 5.0  # first questions are spread over this long, so that 200 of them are not always due at once
STOP_GRACE_S = 1.0
RESERVE_BYTES = 64 * 1024**2  # two segments of WAL of Dagster's own PostgreSQL, and room for its events
MOST_UNSTORED = 20_000  # verdicts kept for a disk that is full: an hour of a large spec
RESOLVER_THREADS = 256  # a name that does not resolve holds one; none of 200 may wait for another's

log = structlog.get_logger()


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Watched:
    """One probe, what is known of it, and its task. delay_s: from due time to stored verdict, of the last one."""

    probe: Probe
    condition: Condition
    verdict: ProbeVerdict | None = None
    at: datetime | None = None
    at_s: float | None = None
    delay_s: float = 0.0
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Prober:
    """Probes, stores and serves verdicts. `run` blocks until `stop`; one per event loop."""

    def __init__(self, spec_path: Path, state_dir: Path, *, is_embedded: bool = False) -> None:
        """is_embedded: the nodes of the embedded stack are failed over here. Raises ConfigError for no valid spec."""
        self.state_dir = state_dir
        self._is_embedded = is_embedded
        self.spec_path = spec_path
        self.watched: dict[str, Watched] = {}
        self.beats = 0
        self.unstored = 0
        self.protection: Mapping[str, Any] | None = None
        self._stack = Stack(read_spec_in_force(spec_path, state_dir).loaded, state_dir)
        self._spec_watch = SpecWatch(spec_path, state_dir)
        self._clients = HttpClients()
        self._pending: list[tuple[StoredVerdict, float]] = []  # with its due time, monotonic
        self._stopping = asyncio.Event()
        self._fault: BaseException | None = None
        self._has_news = asyncio.Event()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._history: HistoryWriter | None = None
        self._reserve = DiskReserve(history_file(state_dir).parent, RESERVE_BYTES)
        self.alerts = self._read_alerts()
        self._alerts_lock = asyncio.Lock()
        self._token: asyncio.Future[str] | None = None

    @property
    def stack(self) -> Stack:
        """The stack of the spec in force."""
        return self._stack

    @property
    def stack_name(self) -> str:
        return self._stack.spec.name

    @property
    def address(self) -> tuple[str, int]:
        """Where the spec wants metrics to be served; port 0 is a free one."""
        return self._stack.spec.watch.host, self._stack.spec.watch.port or 0

    @property
    def rendered_names(self) -> frozenset[str]:
        """Host headers by which the rendered Prometheus and Alertmanager call us."""
        return prober_names(self._stack.spec)

    async def webhook_token(self) -> str:
        """Return the token that Alertmanager's calls must carry; many calls at once wait for one reading of it.

        Raises ConfigError or Unreachable when it is not there.
        """
        if self._token is None or self._token.done():
            self._token = asyncio.ensure_future(asyncio.to_thread(self._stack.spec.alerting.webhook_token.resolve))
        return await asyncio.shield(self._token)

    async def take_alerts(self, told: Iterable[Told]) -> bool:
        """Keep what a notification says; False when the disk would not have it, and nothing has changed."""
        async with self._alerts_lock:
            after = after_notification(self.alerts, told, utc_now())
            kept = [alert.to_json() for alert in after]
            if not await self._on_disk(lambda history: history.set_note(NOTE, kept)):
                return False
            self.alerts = after
            return True

    def _read_alerts(self) -> tuple[ActiveAlert, ...]:
        try:
            return read_active_alerts(self.state_dir, utc_now()) or ()
        except (SynapseOpsError, OSError, sqlite3.Error, ValueError, TypeError, KeyError):
            return ()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what has to run for as long as we do: when it ends without being cancelled, `run` raises its error."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._notice_end)
        return task

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._stopping.is_set():
            return
        self._fault = task.exception() or RuntimeError(f"{task.get_coro()} ended")
        self.stop()

    async def run(self) -> None:
        """Probe until `stop` is called. Raises the error of a task that ended by itself."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="blocking"))
        await loop.run_in_executor(self._disk, self._reserve.hold)
        await self._on_disk(lambda history: None)  # a disk that will not have it is asked again with each verdict
        await self._take_probes()
        tasks = [self.start_task(work) for work in (self._beat(), self._keep(), self._look_at_repository())]
        try:
            await self._stopping.wait()
        finally:
            tasks += [watched.task for watched in self.watched.values() if watched.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=STOP_GRACE_S)
            await self._flush()
        if self._fault is not None:
            raise self._fault

    async def _take_probes(self) -> None:
        """Make the probes of the spec in force the ones that are asked; what is the same goes on from its condition."""
        loop = asyncio.get_running_loop()
        kept = await loop.run_in_executor(self._disk, self._read_conditions)
        clients = HttpClients()
        probes = stack_probes(
            self._stack, clients, is_embedded=self._is_embedded
        )  # may raise: what is asked now goes on
        old_clients, self._clients = self._clients, clients
        for watched in self.watched.values():
            kept[watched.probe.name, watched.probe.target] = watched.condition
            if watched.task is not None:
                watched.task.cancel()
        now = utc_now()
        before, self.watched = self.watched, {}
        for number, probe in enumerate(probes):
            condition = kept.get((probe.name, probe.target)) or initial_condition(now)
            watched = self.watched[probe.name] = Watched(probe, condition)
            known = before.get(probe.name)
            if known is not None and known.probe == probe:
                watched.verdict, watched.at, watched.at_s = known.verdict, known.at, known.at_s
            first_s = min(SPREAD_S, probe.interval_s) * number / max(len(probes), 1)
            watched.task = self.start_task(self._ask_for_ever(watched, loop.time() + first_s))
        await self._on_disk(
            lambda history: history.set_probes(probes, {n: w.condition for n, w in self.watched.items()})
        )
        await old_clients.close()
        log.info("probing", probes=len(probes), spec=str(self.spec_path))

    def _read_conditions(self) -> dict[tuple[str, str], Condition]:
        try:
            with HistoryReader(history_file(self.state_dir)) as history:
                return kept_conditions(history.probes(), utc_now())
        except (OSError, sqlite3.Error, ValueError):
            return {}

    async def _ask_for_ever(self, watched: Watched, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        asker = Asker(watched.probe)
        interval_s = watched.probe.interval_s
        while True:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            verdict = await asker.ask()
            self._take_verdict(watched, verdict, due_s)
            if asker.fault is not None:
                log.error("internal error in a probe", probe=watched.probe.name, exc_info=asker.fault)
                asker.fault = None
            due_s += interval_s * max(1, -(-(loop.time() - due_s) // interval_s))  # what was missed is not made up for

    def _take_verdict(self, watched: Watched, verdict: ProbeVerdict, due_s: float) -> None:
        now, now_s = utc_now(), asyncio.get_running_loop().time()
        before = watched.condition
        lapsed = self._lapse_of(watched, now_s)
        after = next_condition(lapsed or before, verdict, now)
        longest_s = watched.probe.interval_s + watched.probe.timeout_s + OVERDUE_GRACE.total_seconds()
        elapsed_s = min(now_s - watched.at_s, longest_s) if watched.at_s is not None else 0.0
        watched.condition, watched.verdict, watched.at, watched.at_s = after, verdict, now, now_s
        stored = StoredVerdict(watched.probe.name, now, verdict, before, after, elapsed_s, lapsed)
        self._pending.append((stored, due_s))
        self._has_news.set()
        if after.state is not before.state:
            log.info("state changed", probe=watched.probe.name, old=before.state, new=after.state, reason=after.reason)

    def _lapse_of(self, watched: Watched, now_s: float) -> Condition | None:
        """Return the unknown span before an overdue verdict: the prober was stopped, and no probe ran."""
        if watched.at is None or watched.at_s is None:
            return None
        probe = watched.probe
        interval, timeout = timedelta(seconds=probe.interval_s), timedelta(seconds=probe.timeout_s)
        then = watched.at + timedelta(seconds=now_s - watched.at_s)
        lapsed = condition_now(watched.condition, watched.at, interval=interval, timeout=timeout, now=then)
        return None if lapsed is watched.condition else lapsed

    async def _keep(self) -> None:
        """Write verdicts as they come, and remove history past its time."""
        loop = asyncio.get_running_loop()
        prune_at_s, steady_at = loop.time() + PRUNE_EVERY_S, utc_now()
        while True:
            await self._has_news.wait()
            await asyncio.sleep(FLUSH_S)
            self._has_news.clear()
            await self._flush()
            if loop.time() >= prune_at_s:
                await loop.run_in_executor(self._disk, self._reserve.hold)
                steady_s = PRUNE_EVERY_S + loop.time() - prune_at_s
                jump_s = (utc_now() - steady_at).total_seconds() - steady_s
                prune_at_s, steady_at = loop.time() + PRUNE_EVERY_S, utc_now()
                if abs(jump_s) > STEADY_S:
                    log.warning("the clock jumped: no history is removed", jump_s=round(jump_s))
                    continue
                oldest = utc_now() - self._stack.spec.watch.history
                await self._on_disk(lambda history, oldest=oldest: history.prune(oldest))

    async def _flush(self) -> None:
        if not self._pending:
            return
        batch, self._pending = self._pending, []
        verdicts = [stored for stored, _ in batch]
        if await self._on_disk(lambda history: history.store(verdicts)):
            now_s = asyncio.get_running_loop().time()
            for stored, due_s in batch:
                if stored.probe in self.watched:
                    self.watched[stored.probe].delay_s = now_s - due_s
            return
        kept = [*batch, *self._pending][-MOST_UNSTORED:]
        self.unstored += len(batch) + len(self._pending) - len(kept)
        self._pending = kept
        self._has_news.set()
        await asyncio.sleep(BEAT_S)

    async def _on_disk(self, work: Any) -> bool:
        """Do something with the history in its own thread; False when the disk would not have it."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._write, work)
        except (sqlite3.Error, OSError) as fault:
            log.warning("history could not be written", fault=str(fault))
            if is_full(fault) and self._reserve.is_held:
                await self._say_that_the_disk_is_full()
            return False
        return True

    async def _say_that_the_disk_is_full(self) -> None:
        """Measure the disk now, as often as decides its state, not a minute later; then make room for it."""
        watched = self.watched.get(DISK)
        if watched is not None:
            for _ in range(WINDOW):
                self._take_verdict(watched, await Asker(watched.probe).ask(), asyncio.get_running_loop().time())
        self._reserve.release()
        log.error("the disk is full: the reserve is released", path=str(self._reserve.path))

    def _write(self, work: Any) -> None:
        """Do something with the history, which is opened where it is not yet and begun again where it is damaged."""
        if self._history is None:
            self._history = HistoryWriter(history_file(self.state_dir))
            self._write_probes(self._history)
        try:
            work(self._history)
        except sqlite3.DatabaseError as fault:
            if not is_damage(fault):
                raise
            log.warning("the history is damaged: it is set aside", fault=str(fault))
            history, self._history = self._history, None  # until the new one is whole
            history.set_aside()
            self._write_probes(history)
            work(history)
            self._history = history

    def _write_probes(self, history: HistoryWriter) -> None:
        watched = list(self.watched.values())
        if watched:
            history.set_probes([one.probe for one in watched], {one.probe.name: one.condition for one in watched})

    async def _beat(self) -> None:
        """Count rounds, so that a reader of the count sees a prober that hangs; and take a new spec in force."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.beats += 1
            try:
                changed = self._spec_watch.has_new_spec()
                if changed:
                    self._stack = Stack(read_spec_in_force(self.spec_path, self.state_dir).loaded, self.state_dir)
                    await self._take_probes()
            except (SynapseOpsError, OSError) as fault:
                log.warning("the spec could not be read", fault=str(fault))

    async def _look_at_repository(self) -> None:
        await asyncio.sleep(FIRST_READING_S)
        while True:
            found = None
            try:
                found = await read_protection(self.spec_path, self.state_dir)
            except OSError as fault:  # no process could be made: 200 probes that hang hold descriptors
                log.warning("the repository could not be read", fault=str(fault))
            if found is not None:
                self.protection = found
                await self._on_disk(lambda history, found=found: history.set_note("protection", found))
            await asyncio.sleep(self._stack.spec.watch.repository_interval.total_seconds())
