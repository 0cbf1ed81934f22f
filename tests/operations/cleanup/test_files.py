"""Log and temporary files: a plan is what happens, and nothing outside of its roots is ever touched."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synapse_ops.errors import PlanChanged, Refused
from synapse_ops.operations.cleanup.files import apply_cleanup, make_cleanup_plan
from synapse_ops.operations.cleanup.plan_file import Outcome, StoredPlan
from synapse_ops.spec import Spec

NOW = datetime.now(UTC)


class Place:
    """A log root, a temp root, a state directory, and a directory outside that must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.logs, self.temp, self.state, self.outside = (self.folder / name for name in ("l", "t", "state", "outside"))
        for path in (self.logs, self.temp, self.state, self.outside):
            path.mkdir()
        cleanup = Spec().cleanup.model_copy(update={"log_roots": (str(self.logs),), "temp_roots": (str(self.temp),)})
        self.spec = Spec().model_copy(update={"cleanup": cleanup})

    def plan(self, kind: str = "logs", now: datetime = NOW) -> StoredPlan:
        return make_cleanup_plan(kind, self.spec, self.state, now)

    def apply(self, plan: StoredPlan, now: datetime = NOW) -> Outcome:
        return apply_cleanup(plan.kind, plan.digest, self.spec, self.state, now)


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="synapse-cleanup-"))
    yield Place(folder)
    shutil.rmtree(folder)


def write(path: Path, days: float, text: bytes = b"line\n" * 100) -> Path:
    """Make a file that was written so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return aged(path, days)


def aged(path: Path, days: float) -> Path:
    moment = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (moment, moment), follow_symlinks=False)
    return path


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_old_logs_go_and_those_of_yesterday_are_compressed_with_time_mode_and_content(place: Place) -> None:
    """30 days and one day, the spec's defaults; a compressed log keeps the age at which it will go."""
    write(place.logs / "old.log", 31)
    yesterday = write(place.logs / "yesterday.log", 2)
    yesterday.chmod(0o640)
    before = yesterday.stat()
    write(place.logs / "today.log", 0)

    outcome = place.apply(place.plan())

    assert names(place.logs) == {"yesterday.log.gz", "today.log"}
    packed = place.logs / "yesterday.log.gz"
    assert gzip.decompress(packed.read_bytes()) == b"line\n" * 100
    assert (packed.stat().st_mtime_ns, packed.stat().st_mode) == (before.st_mtime_ns, before.st_mode)
    assert (outcome.done, outcome.skipped) == ({"delete": 1, "compress": 1}, 0)


def test_a_file_that_is_open_stays_whoever_only_reads_it_too(place: Place) -> None:
    """Removing an open log frees nothing and loses what is written next."""
    held = [write(place.logs / name, 40) for name in ("written.log", "read.log")]

    with held[0].open("ab"), held[1].open("rb"):
        plan = place.plan()
        assert plan.totals["by_rule"] == {"open": 2}
    later = place.plan()
    with held[0].open("ab"):
        outcome = place.apply(later)

    assert names(place.logs) == {"written.log"}
    assert [row["skipped_because"] for row in outcome.rows] == ["a process has it open"]


def test_links_are_neither_followed_nor_removed(place: Place) -> None:
    """A link in a root, to a file or to a directory, leads nowhere."""
    write(place.outside / "precious", 99)
    (place.temp / "file").symlink_to(place.outside / "precious")
    (place.temp / "folder").symlink_to(place.outside)
    for name in ("file", "folder"):
        aged(place.temp / name, 99)

    place.apply(place.plan("temp"))

    assert names(place.outside) == {"precious"}
    assert names(place.temp) == {"file", "folder"}


def test_a_root_that_is_reached_through_a_link_is_refused(place: Place) -> None:
    """Whoever may change the link would choose what is removed."""
    shutil.rmtree(place.temp)
    place.temp.symlink_to(place.outside, target_is_directory=True)

    with pytest.raises(Refused, match="is a link"):
        place.plan("temp")


def test_a_directory_swapped_after_the_plan_keeps_what_lies_there_now(place: Place) -> None:
    """Exchanged for a link, for another directory with the same names, or moved out of the root."""
    for name in ("linked", "other", "moved"):
        write(place.temp / name / "f", 9)
    plan = place.plan("temp")
    (place.temp / "linked").rename(place.folder / "was-linked")
    write(place.outside / "f", 9)
    (place.temp / "linked").symlink_to(place.outside)
    shutil.rmtree(place.temp / "other")
    write(place.temp / "other" / "f", 9)
    (place.temp / "moved").rename(place.outside / "moved")

    outcome = place.apply(plan)

    assert (outcome.done, outcome.skipped) == ({}, 3)
    assert names(place.outside) == {"f", "moved", "moved/f"}
    assert (place.temp / "other" / "f").exists()


def test_a_thread_that_swaps_directories_during_the_run_costs_nothing_outside(place: Place) -> None:
    """A directory becomes a link to the outside and back, as fast as it can, while the plan is made and applied."""
    for number in range(300):
        write(place.temp / "d" / f"f{number}", 9)
        write(place.outside / f"f{number}", 9)
    stop = threading.Event()

    def swap() -> None:
        real, link, spare = place.temp / "d", place.folder / "link", place.folder / "spare"
        link.symlink_to(place.outside)
        while not stop.is_set():
            real.rename(spare)
            link.rename(real)
            real.rename(link)
            spare.rename(real)

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        for _ in range(5):
            place.apply(place.plan("temp", datetime.now(UTC)), datetime.now(UTC))
    finally:
        stop.set()
        racer.join()

    assert len(names(place.outside)) == 300


def test_hard_links_are_counted_once_and_only_with_their_last_name(place: Place) -> None:
    """What another name keeps is not freed."""
    write(place.temp / "a", 9, b"x" * 1000)
    (place.temp / "b").hardlink_to(place.temp / "a")
    write(place.temp / "c", 9, b"x" * 1000)
    (place.outside / "d").hardlink_to(place.temp / "c")

    plan = place.plan("temp")
    outcome = place.apply(plan)

    assert plan.totals["freed_bytes"] == outcome.freed_bytes == 1000
    assert names(place.outside) == {"d"}


def test_names_that_are_no_text_go_like_others(place: Place) -> None:
    """A newline, a byte that is not UTF-8, a quote: names are bytes."""
    for name in (b"new\nline", b"\xff\xfe", b'quo"te\\', "ü".encode()):
        write(place.temp / os.fsdecode(name), 9)

    place.apply(place.plan("temp"))

    assert names(place.temp) == set()


@pytest.mark.parametrize("mark", ["PG_VERSION", "pg_wal", "appendonlydir", "raft_state.json"])
def test_where_a_server_keeps_its_data_the_root_is_refused(place: Place, mark: str) -> None:
    """In the root, below it, or above it; a server that came after the plan keeps its files, too."""
    write(place.temp / "f", 9)
    write(place.temp / "deep" / "f", 9)
    plan = place.plan("temp")
    (place.temp / "deep" / mark).mkdir()

    with pytest.raises(Refused, match=mark):
        place.plan("temp")
    place.apply(plan)
    assert (place.temp / "deep" / "f").exists()
    (place.folder / mark).mkdir()
    with pytest.raises(Refused, match=mark):
        place.plan("logs")


@pytest.mark.parametrize("root", ["/", "/etc", "/etc/x", "/home", "/home/me", "/tmp", "/var/log", "/usr/share/x"])
def test_directories_of_the_system_are_refused_as_roots(place: Place, root: str) -> None:
    """A spec is written by people."""
    place.spec = place.spec.model_copy(
        update={"cleanup": place.spec.cleanup.model_copy(update={"temp_roots": (root,)})}
    )

    with pytest.raises(Refused, match=r"system|home"):
        place.plan("temp")


def test_the_state_directory_is_no_root_but_for_its_logs_and_temp(place: Place) -> None:
    """Its data, secrets and plans are not files to be tidied away."""
    (place.state / "data").mkdir()
    (place.state / "logs").mkdir()

    def plan(root: Path) -> StoredPlan:
        cleanup = place.spec.cleanup.model_copy(update={"temp_roots": (str(root),)})
        return make_cleanup_plan("temp", place.spec.model_copy(update={"cleanup": cleanup}), place.state, NOW)

    for root in (place.state / "data", place.state, place.folder):
        with pytest.raises(Refused, match="state directory"):
            plan(root)
    assert plan(place.state / "logs").totals["files"] == 0


def test_a_used_plan_an_old_one_and_an_edited_one_are_refused(place: Place) -> None:
    """An approval is for what was read, once, on that day. A plan made anew may be applied, though it says the same."""
    write(place.logs / "a.log", 40)
    plan = place.plan()
    with pytest.raises(PlanChanged, match="24 h"):
        place.apply(plan, NOW + timedelta(hours=25))
    place.apply(plan)
    with pytest.raises(PlanChanged, match="was applied"):
        place.apply(plan)
    write(place.logs / "b.log", 40)
    edited = place.plan()
    edited.path.write_bytes(edited.path.read_bytes().replace(b"b.log", b"c.log"))
    with pytest.raises(PlanChanged, match="has digest"):
        place.apply(edited)
    empty = make_cleanup_plan("temp", place.spec, place.state, NOW)
    place.apply(empty)
    again = make_cleanup_plan("temp", place.spec, place.state, NOW + timedelta(hours=1))
    assert again.digest == empty.digest
    place.apply(again, NOW + timedelta(hours=1))


def test_what_changed_since_the_plan_is_skipped_with_the_reason(place: Place) -> None:
    """Vanished, written to, replaced by another file of the same size and time."""
    for name in ("gone", "written", "replaced"):
        write(place.logs / name, 40)
    plan = place.plan()
    (place.logs / "gone").unlink()
    (place.logs / "written").write_bytes(b"new")
    write(place.logs / "new", 40).rename(place.logs / "replaced")

    outcome = place.apply(plan)

    reasons = {row["path"]: row["skipped_because"] for row in outcome.rows}
    assert reasons == {
        "gone": "it is gone already",
        "written": "it was written since",
        "replaced": "another file lies there now",
    }


def test_a_compression_that_was_cut_off_is_finished_or_left_alone(place: Place) -> None:
    """A whole copy beside its original is finished; a name with .gz that holds something else is not overwritten."""
    for name in ("whole", "taken"):
        write(place.logs / name, 5)
    write(place.logs / "whole.gz", 5, gzip.compress(b"line\n" * 100))
    write(place.logs / "taken.gz", 5, gzip.compress(b"something else"))

    place.apply(place.plan())

    assert names(place.logs) == {"whole.gz", "taken", "taken.gz"}


TREES = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3),
        st.sampled_from([0, 0.5, 2, 6, 8, 29, 31, 400, -3]),
        st.integers(0, 3),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES, kind=st.sampled_from(["logs", "temp"]))
def test_a_dry_run_is_what_happens(tree: list[tuple[list[str], float, int]], kind: str) -> None:
    """On any tree that nobody touches: exactly what the plan lists is done, all of it, and nothing else changes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        root = place.logs if kind == "logs" else place.temp
        for parts, days, size in tree:
            path = root.joinpath(*parts[:-1], f"{parts[-1]}.log")
            write(path, days, b"x" * size)
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_dir():
                aged(path, 50)
        before = names(root)

        plan = place.plan(kind)
        outcome = place.apply(plan)

        expected = set(before)
        for row in plan.first_rows:
            if row["action"] != "keep":
                expected.remove(row["path"])
            if row["action"] == "compress":
                expected.add(row["path"] + ".gz")
        assert names(root) == expected
        assert outcome.skipped == 0
        assert sum(outcome.done.values()) == (
            plan.totals["deleted"] + plan.totals["compressed"] + plan.totals["removed_directories"]
        )
