"""Plans what becomes of log and temporary files, and does exactly that plan.

A plan looks at every file below the roots of the spec and asks the kernel whether those that would go are open. It
lists what it would act on, and what it leaves alone for another reason than youth; the young are counted. Applying
opens each directory anew without following a link, and acts on an entry only when it has the device, inode, size and
time of the plan, is not open, and still lies below its root. What differs is skipped and reported.
A root in which a server keeps its data, or a restore works, is refused as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from synapse_ops.domain.cleanup.files import (
    COMPRESSED_SUFFIX,
    STORE_MARKS,
    Action,
    Decision,
    Entry,
    FilePolicy,
    FileRules,
    Rule,
    root_fault,
)
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import PlanChanged, Refused
from synapse_ops.operations.cleanup.plan_file import Draft, Outcome, StoredPlan, apply_plan, write_plan
from synapse_ops.spec import Spec
from synapse_ops.systems.host.filesystem import (
    Barrier,
    Directory,
    DirectoryLeft,
    EntryChanged,
    FileSeen,
    NotEntered,
    OpenFiles,
    Root,
    check_still_below,
    open_directory,
    open_root,
    status_at,
    walk,
)
from synapse_ops.systems.host.log_compression import compress_in_place

_PROGRESS_EVERY = 10_000
_BARRIER_RULES = {
    Barrier.MOUNT: Rule.MOUNT,
    Barrier.TOO_DEEP: Rule.TOO_DEEP,
    Barrier.NOT_READABLE: Rule.NOT_READABLE,
    Barrier.CHANGED: Rule.CHANGED,
}


def make_cleanup_plan(
    kind: str, spec: Spec, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> StoredPlan:
    """Decide about everything below the roots of one kind, `logs` or `temp`; store the plan and return it.

    Changes nothing in the roots. Memory does not grow with the number of files, only with hard-linked ones.
    Raises Refused for a root that may not be cleaned up.
    """
    policy = FilePolicy.of(kind, spec)
    with _open_roots(policy.roots, state_dir) as roots:
        with write_plan(state_dir, kind, _plan_policy(policy, roots), now) as draft:
            scan = _Scan(draft, FileRules(policy, now), progress)
            for index, root in enumerate(roots):
                scan.look_at(index, root)
            draft.totals = scan.totals()
            if not roots:
                draft.warnings.append(f"cleanup.{_root_setting(kind)} is empty: there is nothing to clean up")
        return draft.plan


def apply_cleanup(
    kind: str, digest: str, spec: Spec, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> Outcome:
    """Do what the plan of this digest names, as far as each entry still is what the plan saw.

    Raises PlanChanged (no such plan, used, older than 24 h, its roots changed), Refused, LeaseHeld.
    """
    policy = FilePolicy.of(kind, spec)
    with apply_plan(state_dir, kind, digest, now) as (plan, outcome):
        named = plan.header["policy"]
        foreign = [path for path in named["roots"] if path not in policy.roots]
        if foreign:
            raise PlanChanged(
                f"plan {digest} names {foreign[0]}, which is no longer in cleanup.{_root_setting(kind)}",
                hint="`synapse-ops cleanup --plan` makes a new one.",
            )
        with _open_roots(named["roots"], state_dir) as roots:
            _refuse_other_roots(roots, named["root_inodes"], digest)
            run = _Run(roots, outcome, progress)
            run.apply(plan.entries(), frozenset({Action.DELETE, Action.REMOVE_DIRECTORY}))
            run.apply(plan.entries(), frozenset({Action.COMPRESS}))  # after the space that deleting freed
    return outcome


def _plan_policy(policy: FilePolicy, roots: list[Root]) -> dict[str, Any]:
    return policy.as_json() | {"root_inodes": [[root.device, root.inode] for root in roots]}


def _root_setting(kind: str) -> str:
    return "log_roots" if kind == "logs" else "temp_roots"


@contextmanager
def _open_roots(paths: Any, state_dir: Path) -> Iterator[list[Root]]:
    """Open every root, or refuse: what a system, another stack's state or a server's data is, is never touched."""
    real_state = os.path.realpath(state_dir)
    with ExitStack() as stack:
        for path in paths:
            fault = root_fault(path, real_state) or _store_above(path)
            if fault:
                raise Refused(
                    f'cannot clean up "{path}": {fault}',
                    hint="Name directories that hold only files of this stack in cleanup.log_roots and temp_roots.",
                )
        yield [stack.enter_context(open_root(path)) for path in paths]


def _store_above(path: str) -> str:
    for place in (Path(path), *Path(path).parents):
        for mark in STORE_MARKS:
            if os.path.lexists(place / mark):
                return f"a server keeps its data in {place}: it holds {mark}"
    return ""


def _refuse_other_roots(roots: list[Root], seen: Any, digest: str) -> None:
    for root, (device, inode) in zip(roots, seen, strict=True):
        if (root.device, root.inode) != (device, inode):
            raise PlanChanged(
                f"{root.path} is another directory than plan {digest} saw",
                hint="Make a new plan and check what it lists.",
            )


@dataclass
class _Scan:
    """One look at all roots."""

    draft: Draft
    rules: FileRules
    progress: ReportProgress
    open_files: OpenFiles = field(default_factory=OpenFiles)
    files: int = 0
    counts: dict[Action, int] = field(default_factory=lambda: dict.fromkeys(Action, 0))
    sizes: dict[Action, int] = field(default_factory=lambda: dict.fromkeys(Action, 0))
    by_rule: dict[str, int] = field(default_factory=dict)
    freed_bytes: int = 0
    _links: dict[tuple[int, int], int] = field(default_factory=dict)  # names left of each hard-linked file that goes
    _kept_in: dict[int, int] = field(default_factory=dict)  # inode of a directory -> entries of it that stay

    def look_at(self, index: int, root: Root) -> None:
        for seen in walk(root, STORE_MARKS):
            if isinstance(seen, FileSeen):
                self._file(index, seen)
            elif isinstance(seen, DirectoryLeft):
                self._directory(index, seen)
            else:
                self._not_entered(index, root, seen)
        self._kept_in.clear()

    def totals(self) -> dict[str, Any]:
        counts, sizes = self.counts, self.sizes
        return {
            "files": self.files,
            "deleted": counts[Action.DELETE],
            "deleted_bytes": sizes[Action.DELETE],
            "freed_bytes": self.freed_bytes,
            "compressed": counts[Action.COMPRESS],
            "compressed_bytes": sizes[Action.COMPRESS],
            "removed_directories": counts[Action.REMOVE_DIRECTORY],
            "kept": counts[Action.KEEP],
            "kept_bytes": sizes[Action.KEEP],
            "by_rule": dict(sorted(self.by_rule.items())),
        }

    def _file(self, index: int, seen: FileSeen) -> None:
        self.files += 1
        if self.files % _PROGRESS_EVERY == 0:
            self.progress(Progress("scanning files", self.files, unit="files"))
        status = seen.status
        if seen.name.startswith("throwaway-") and seen.name.endswith(".owner"):
            raise Refused(
                f"cannot clean up while a restore works there: {seen.path}",
                hint="Wait for it to end; after a crash the next `synapse-ops verify` removes what is left.",
            )
        decision = self.rules.decide(
            name=seen.name,
            is_regular=seen.is_regular,
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            links=status.st_nlink,
        )
        if decision.action is not Action.KEEP:
            decision = self._unless_open(seen, decision)
        self._count(decision, status.st_size)
        if decision.action is Action.KEEP:
            self._kept_in[seen.directory_inode] = self._kept_in.get(seen.directory_inode, 0) + 1
            if decision.rule is Rule.YOUNG:
                return
        elif decision.action is Action.DELETE:
            self._count_freed(status)
        self._add(index, decision, seen.path, status, seen.directory_inode)

    def _unless_open(self, seen: FileSeen, decision: Decision) -> Decision:
        try:
            objection = self.open_files.objection(seen.directory_fd, seen.name, seen.status)
            if not objection and decision.action is Action.COMPRESS and self._is_taken(seen):
                return self.rules.name_taken
        except EntryChanged as change:
            return Decision(Action.KEEP, Rule.CHANGED, change.message)
        return Decision(Action.KEEP, Rule.OPEN, objection) if objection else decision

    def _is_taken(self, seen: FileSeen) -> bool:
        """Whether something else has the name; a whole copy that a cut-off run left has the time of its original."""
        directory = Directory(seen.directory_fd, "", seen.directory_inode)
        try:
            return status_at(directory, seen.name + COMPRESSED_SUFFIX).st_mtime_ns != seen.status.st_mtime_ns
        except EntryChanged:
            return False

    def _count(self, decision: Decision, size_bytes: int) -> None:
        self.counts[decision.action] += 1
        self.sizes[decision.action] += size_bytes
        self.by_rule[decision.rule.value] = self.by_rule.get(decision.rule.value, 0) + 1

    def _count_freed(self, status: os.stat_result) -> None:
        """Count a file's bytes once, with the last of its names; a name outside the roots keeps them."""
        left = 0
        if status.st_nlink > 1:
            inode = (status.st_dev, status.st_ino)
            left = self._links.get(inode, status.st_nlink) - 1
            self._links[inode] = left
        if left == 0:
            self.freed_bytes += status.st_size

    def _directory(self, index: int, left: DirectoryLeft) -> None:
        is_emptied = self._kept_in.pop(left.status.st_ino, 0) == 0
        if not self.rules.decide_directory(is_emptied=is_emptied, modified_ns=left.status.st_mtime_ns):
            self._kept_in[left.parent_inode] = self._kept_in.get(left.parent_inode, 0) + 1
            return
        self._count(self.rules.emptied, 0)
        self._add(index, self.rules.emptied, left.path, left.status, left.parent_inode)

    def _not_entered(self, index: int, root: Root, seen: NotEntered) -> None:
        if seen.barrier is Barrier.STORE:
            raise Refused(
                f'cannot clean up "{root.path}": a server keeps its data in {seen.path}: {seen.detail}',
                hint="Name directories that hold only files of this stack in cleanup.log_roots and temp_roots.",
            )
        self._kept_in[seen.kept_in] = self._kept_in.get(seen.kept_in, 0) + 1
        decision = Decision(Action.KEEP, _BARRIER_RULES[seen.barrier], seen.detail)
        self._count(decision, 0)
        self.draft.writer.add(
            Entry(decision.action, decision.rule, decision.reason, index, seen.path, 0, 0).as_json(), acts=False
        )

    def _add(self, index: int, decision: Decision, path: str, status: os.stat_result, directory_inode: int) -> None:
        entry = Entry(
            decision.action,
            decision.rule,
            decision.reason,
            index,
            path,
            status.st_ino,
            directory_inode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_nlink,
        )
        self.draft.writer.add(entry.as_json(), acts=decision.action is not Action.KEEP)


@dataclass
class _Run:
    """One application of a plan's entries, directory by directory."""

    roots: list[Root]
    outcome: Outcome
    progress: ReportProgress
    open_files: OpenFiles = field(default_factory=OpenFiles)
    _done: int = 0
    _directory: Directory | None = None
    _of: tuple[int, str, int] | None = None

    def apply(self, entries: Iterator[Mapping[str, Any]], actions: frozenset[Action]) -> None:
        names = {action.value for action in actions}
        try:
            for body in entries:
                if body["action"] in names:
                    self._apply(Entry.from_json(body))
        finally:
            self._leave()

    def _apply(self, entry: Entry) -> None:
        self._done += 1
        if self._done % _PROGRESS_EVERY == 0:
            self.progress(Progress("cleaning up", self._done, unit="files"))
            self.open_files.refresh()
        try:
            directory = self._enter(entry)
            freed = self._act(directory, entry)
        except EntryChanged as change:
            self.outcome.skip(entry.as_json(), change.message)
            return
        except OSError as error:
            self.outcome.skip(entry.as_json(), f"could not be changed: {error.strerror}")
            return
        self.outcome.did(entry.action.value, freed)

    def _enter(self, entry: Entry) -> Directory:
        place = (entry.root, entry.directory, entry.directory_inode)
        if self._directory is None or self._of != place:
            self._leave()
            self._directory = open_directory(
                self.roots[entry.root], entry.directory, entry.directory_inode, STORE_MARKS
            )
            self._of = place
        return self._directory

    def _leave(self) -> None:
        if self._directory is not None:
            self._directory.close()
        self._directory = self._of = None

    def _act(self, directory: Directory, entry: Entry) -> int:
        """Check one entry for the last time, act, and return the bytes freed."""
        root, name = self.roots[entry.root], entry.name
        status = status_at(directory, name)
        if (status.st_dev, status.st_ino) != (root.device, entry.inode):
            raise EntryChanged("another file lies there now")
        if entry.action is Action.REMOVE_DIRECTORY:
            check_still_below(root, directory)
            os.rmdir(name, dir_fd=directory.fd)
            return 0
        if (status.st_size, status.st_mtime_ns) != (entry.size_bytes, entry.modified_ns):
            raise EntryChanged("it was written since")
        if entry.links == 1 and status.st_ctime_ns != entry.changed_ns:  # removing another name of a file changes it
            raise EntryChanged("it was replaced or changed since")
        objection = self.open_files.objection(directory.fd, name, status)
        if objection:
            raise EntryChanged(objection)
        check_still_below(root, directory)
        if entry.action is Action.COMPRESS:
            return compress_in_place(directory, name, status)
        os.unlink(name, dir_fd=directory.fd)
        return status.st_size if status.st_nlink == 1 else 0
