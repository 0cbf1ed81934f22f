"""Serves WAL to a server in recovery: segments are fetched ahead into a directory, which its restore_command waits for.

A restore_command in Python would cost a second a segment, so it is a shell's loop over a directory. What it answers is
what the server believes: exit 1 means the end of WAL, and only a name that the plan does not offer gets it; everything
else that keeps a segment away is exit 255, which ends recovery, for a server that took a failure for the end would open
with rows missing. Source: PostgreSQL documentation, "restore_command".

What the server waits for comes first. It may ask for a segment again that it had taken long ago: it reads up to 512 KiB
ahead, which are many segments where few have much in them, and at its target it goes back to the last record that it
has applied. And a recovery that was interrupted goes on in the middle.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from synapse_ops.domain.database.recovery_plan import RecoveryPlan
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.errors import SynapseOpsError, Unreachable
from synapse_ops.operations.database.wal_fetch import fetch_history, fetch_segment
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import ServerIdentity, give_to, make_private_dir

AHEAD = 8  # segments that wait to be replayed
TRIES = 5
WAIT_LOOPS = 12_000  # of a twentieth of a second: ten minutes, also while the store is slow
_OFFERED, _FAILED, _WANTED = "offered", "failed", "wanted"

# $1 is the name, $2 where the server wants it; written once, so that the name needs no quoting
_SCRIPT = f"""\
cd {{directory}} || exit 255
grep -qxF -- "$1" {_OFFERED} || exit 1
n=0
while :; do
  if [ -e "$1" ]; then
    cp -- "$1" {{data_dir}}/"$2" && break
    [ -e "$1" ] && exit 255
  fi
  [ -e {_FAILED} ] && exit 255
  echo "$1" >> {_WANTED}
  n=$((n + 1)); [ "$n" -gt {WAIT_LOOPS} ] && exit 255
  sleep 0.05
done
: > "taken-$1"
"""


class WalPrefetcher:
    """Fetches the segments of a plan ahead of a server that replays them, while the block lasts.

    directory: new, of the server's identity. used_timeline: the server begins a higher one. error: what ended it early.
    """

    def __init__(
        self,
        repository: Repository,
        archive: WalArchive,
        plan: RecoveryPlan,
        *,
        directory: Path,
        data_dir: Path,
        identity: ServerIdentity | None,
        age_identities: tuple[str, ...],
        progress: ReportProgress,
        used_timeline: int = 0,
    ) -> None:
        self._used_timeline = used_timeline
        self._repository, self._archive, self._plan = repository, archive, plan
        self._age_identities, self._progress, self._identity = age_identities, progress, identity
        self.directory = make_private_dir(directory, identity)
        self._data_dir = data_dir
        self._taken = self._removed = 0  # segments that the server has taken; that were removed behind it
        self._stop = threading.Event()
        self.error: SynapseOpsError | None = None
        self._thread = threading.Thread(target=self._run, name="wal-prefetch", daemon=True)

    def restore_command(self) -> str:
        return f"/bin/sh {shlex.quote(str(self.directory / 'restore.sh'))} %f %p"

    def __enter__(self) -> Self:
        histories = [fork.timeline for fork in self._plan.history.forks] + [self._plan.history.timeline]
        stored = {row.timeline for row in self._archive.timelines}  # not those of the generation before a recovery
        self._histories = [number for number in histories if number > 1 and number in stored]
        used = range(self._plan.history.timeline + 1, self._used_timeline + 1)
        names = [f"{number:08X}.history" for number in (*self._histories, *used)]
        names += [segment.name for segment in self._plan.segments]
        self._write("offered", "".join(f"{name}\n" for name in names).encode())
        script = _SCRIPT.format(directory=shlex.quote(str(self.directory)), data_dir=shlex.quote(str(self._data_dir)))
        self._write("restore.sh", script.encode())
        for number in self._histories:
            self._write(f"{number:08X}.history", fetch_history(self._repository, self._archive, number))
        for number in used:  # the server asks whether each is there, to begin a timeline behind them; it reads none
            self._write(f"{number:08X}.history", b"")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def segment_file(self, segment: Segment) -> Path | None:
        """Return the file of a segment that was fetched and is still there."""
        path = self.directory / segment.name
        return path if path.exists() else None

    def _write(self, name: str, data: bytes) -> None:
        making = self.directory / f"making-{name}"
        making.write_bytes(data)
        give_to(self._identity, making)
        making.rename(self.directory / name)

    def _run(self) -> None:
        try:
            self._fetch_all(self._plan.segments)
        except SynapseOpsError as error:
            self.error = error
        except OSError as error:
            self.error = Unreachable(f"cannot stage WAL in {self.directory}", detail=str(error))
        if self.error is not None:
            self._write(_FAILED, f"{self.error.message}\n".encode())

    def _fetch_all(self, segments: Sequence[Segment]) -> None:
        numbers = {segment.name: number for number, segment in enumerate(segments)}
        position = 0
        while not self._stop.is_set():
            wanted = [numbers[name] for name in self._wanted() if name in numbers]
            missing = [number for number in wanted if not (self.directory / segments[number].name).exists()]
            if missing and missing[0] >= position:  # a recovery that goes on in the middle
                self._taken = position = missing[0]
            if not missing and position < len(segments) and self._ahead_of(segments, position) < AHEAD:
                missing = [position]
            for number in missing:
                self._fetch(segments[number])
                position = max(position, number + 1)
                self._progress(Progress("replaying WAL", position, len(segments), unit="segments"))
            if not missing:
                self._stop.wait(0.02)

    def _wanted(self) -> list[str]:
        """Return the segments that the server has waited for since it was asked last."""
        asked, taken = self.directory / _WANTED, self.directory / f"{_WANTED}-read"
        if not asked.exists():
            return []
        asked.rename(taken)
        return list(dict.fromkeys(taken.read_text(encoding="ascii").split()))

    def _ahead_of(self, segments: Sequence[Segment], position: int) -> int:
        """Return how many fetched segments the server has not taken, and remove those behind it but the last two.

        It reads the last segment again when it begins a timeline of its own.
        """
        for number in range(self._taken, position):
            if (self.directory / f"taken-{segments[number].name}").exists():
                self._taken = number + 1
        for number in range(self._removed, self._taken - 2):
            (self.directory / segments[number].name).unlink(missing_ok=True)
            self._removed = number + 1
        return position - self._taken

    def _fetch(self, segment: Segment) -> None:
        making = self.directory / f"making-{segment.name}"
        for tries_left in reversed(range(TRIES)):
            try:
                with making.open("wb") as sink:
                    fetch_segment(
                        self._repository,
                        self._archive,
                        segment,
                        sink,
                        history=self._plan.history,
                        age_identities=self._age_identities,
                    )
                break
            except Unreachable:
                if not tries_left:
                    raise
                time.sleep(2.0 / (tries_left + 1))
        give_to(self._identity, making)
        making.rename(self.directory / segment.name)
