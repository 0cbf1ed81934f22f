"""A backup counts when it was restored and compared equal; every doubt is written down and counts for nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import psutil
import pyrage
import pytest

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.progress import Progress
from synapse_ops.errors import ObjectMissing
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.proving import ProofReport
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import processes_in
from synapse_ops.systems.postgres import amcheck
from tests.operations.database.backups import KeptBackup, flip

HUNG_TIMEOUT_S = 4.0
CRASH_DEADLINE_S = 60.0
HUNG_DEADLINE_S = 15.0  # the time-out, and ending what hangs

# Functions that behave in the source (TCP) and misbehave in a restored copy (Unix socket only).
HANGS_IN_A_COPY = """
create function shop.slow(bigint) returns bigint immutable language plpgsql
    as 'begin if inet_server_addr() is null then perform pg_sleep(600); end if; return $1; end';
create index on shop.customers (shop.slow(id));
"""


def prove(repository: Repository, work_dir: Path, *identities: str, timeout_s: float = 60) -> ProofReport:
    report = DUMPS.prove(repository, identities=identities, work_dir=work_dir, timeout_s=timeout_s)
    assert report is not None
    return report


def test_a_backup_that_restores_equal_is_proven_and_the_proof_names_every_byte_read(
    backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """The proof is an object beside the backup, and the catalog counts the backup as proven by it."""
    backup.put(repository)

    report = prove(repository, work_dir)

    stored = ProofRecord.from_json(repository.store.read_bytes(report.url.removeprefix(repository.url)), key="proof")
    assert stored == report.record
    assert stored.verdict is Verdict.PROVEN
    assert {item.name: item.size_bytes for item in stored.objects} == {
        name: len(data)
        for name, data in backup.objects.items()
        if name in {"database.dump", "globals.sql", "fingerprint.json", "structure.json", "supplement.sql"}
    }
    assert stored.restore_s is not None
    assert stored.amcheck_relations > 5
    assert read_catalog(repository).backups[0].proven_at == stored.finished_at
    assert not [info for info in repository.store.list_objects() if "reading-" in info.key]


def test_the_second_proof_of_a_repository_stands_beside_its_prediction(
    backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """What the first restore took is what the next of that size is expected to take; no proof overwrites another."""
    place = backup.put(repository)
    first = DUMPS.prove(repository, place=place, work_dir=work_dir)
    second = DUMPS.prove(repository, place=place, work_dir=work_dir)

    assert first is not None
    assert second is not None
    assert first.record.predicted_restore_s is None
    assert second.record.predicted_restore_s == first.record.restore_s
    assert first.url != second.url


def test_nothing_is_done_when_every_backup_is_proven(
    backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """Nothing to do is a result, not an error."""
    backup.put(repository)
    prove(repository, work_dir)

    assert DUMPS.prove(repository, work_dir=work_dir) is None


@pytest.mark.parametrize(
    "name", ["database.dump", "globals.sql", "fingerprint.json", "structure.json", "supplement.sql"]
)
def test_one_flipped_bit_is_found_and_named_with_both_digests(
    name: str, backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """A damaged object is never executed: its sha256 is compared before anything of the backup runs."""
    data = backup.objects[name]
    flipped = flip(data, len(data) // 2)
    backup.put(repository, **{name.replace(".", "_"): flipped})

    report = prove(repository, work_dir)

    assert report.record.verdict is Verdict.UNPROVEN
    assert report.exit_code == 13
    found, recorded = (sha256(flipped).hexdigest(), sha256(data).hexdigest())
    assert f"{name} is not what was written: sha256 {found}, recorded {recorded}" in report.record.reason
    assert read_catalog(repository).backups[0].proven_at is None


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('"sha256": "', "ChecksumMismatch"),
        ('"row_count": ', "ChecksumMismatch"),
        ('"fingerprint_digest": "', "ChecksumMismatch"),
        ('"system_identifier": "', "WrongIdentity"),
        ('"backup_id": "', "WrongIdentity"),
        ('"format_version": ', "DocumentUnreadable"),
    ],
)
def test_one_changed_digit_in_backup_json_is_found(
    text: str, cause: str, backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """What backup.json says is held against its place, its own sums and every object it names."""
    data = backup.objects["backup.json"]
    digit = data.index(text.encode()) + len(text)
    changed = data[:digit] + (b"2" if data[digit : digit + 1] != b"2" else b"3") + data[digit + 1 :]
    place = backup.put(repository, backup_json=changed)

    report = DUMPS.prove(repository, place=place, work_dir=work_dir)

    assert report is not None
    assert report.record.verdict is Verdict.UNPROVEN
    assert report.exit_code == 13
    assert cause in report.record.reason


def test_a_truncated_or_missing_object_is_named(backup: KeptBackup, repository: Repository, work_dir: Path) -> None:
    """Both sizes are given for a short object, and the key for a missing one."""
    short = backup.objects["database.dump"][:-1]
    place = backup.put(repository, database_dump=short)
    truncated = prove(repository, work_dir)
    repository.store.delete([place.key("database.dump")])
    missing = prove(repository, work_dir)

    assert f"{len(short)} bytes, recorded {len(short) + 1}" in truncated.record.reason
    assert truncated.exit_code == missing.exit_code == 13
    assert "ObjectMissing" in missing.record.reason
    assert "database.dump" in missing.record.reason


def test_swapped_data_of_two_backups_is_caught_on_both(
    backup: KeptBackup, take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """Each backup.json names the digests of its own objects."""
    other = take_backup("delete from shop.orders where id = 1")
    backup.put(repository, database_dump=other.objects["database.dump"])
    other.put(repository, database_dump=backup.objects["database.dump"])

    reports = [DUMPS.prove(repository, place=kept.place, work_dir=work_dir) for kept in (backup, other)]

    assert [report.exit_code for report in reports if report] == [13, 13]


def test_a_backup_copied_onto_anothers_place_is_caught(
    backup: KeptBackup, take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """A whole backup under another's prefix proves nothing about that other one."""
    other = take_backup()
    KeptBackup(other.place, backup.objects).put(repository)

    report = prove(repository, work_dir)

    assert report.exit_code == 13
    assert "WrongIdentity" in report.record.reason


def test_a_copy_that_is_not_equal_differs_and_says_in_what(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """A dump that restores well but holds other rows than its fingerprint says is not proven."""
    before = take_backup()
    after = take_backup(
        "delete from shop.orders where id = 1; select setval('shop.orders_id_seq', 9)", name=before.place.subject
    )
    before.with_objects(database_dump=after.objects["database.dump"]).put(repository)

    report = prove(repository, work_dir)

    assert report.record.verdict is Verdict.DIFFERS
    assert report.exit_code == 13
    assert report.record.differences == (
        "table shop.orders: 2999 rows, expected 3000",
        "sequence shop.orders_id_seq: value 9, expected 3000",
    )


def test_a_dump_of_another_database_is_refused_before_it_runs(
    backup: KeptBackup, take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """The archive itself says which database it holds."""
    backup.with_objects(database_dump=take_backup().objects["database.dump"]).put(repository)

    report = prove(repository, work_dir)

    assert report.exit_code == 13
    assert "WrongIdentity" in report.record.reason


def test_an_encrypted_backup_is_proven_with_its_key_and_not_without(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path, key_pair: tuple[str, str]
) -> None:
    """A missing or wrong key proves nothing, is written down, and the message names whom the backup was written for."""
    recipient, identity = key_pair
    take_backup(recipients=(recipient,)).put(repository)
    wrong = str(pyrage.x25519.Identity.generate())

    without, with_wrong, proven = prove(repository, work_dir), prove(repository, work_dir, wrong), None
    proven = prove(repository, work_dir, wrong, identity)

    for report in (without, with_wrong):
        assert report.record.verdict is Verdict.NOT_ATTEMPTED
        assert report.exit_code == 14
        assert recipient in report.record.reason
    assert proven.record.verdict is Verdict.PROVEN


def test_a_host_without_the_key_undoes_no_proof_and_damage_does(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path, key_pair: tuple[str, str]
) -> None:
    """What was proven stays proven while its bytes do, with a warning beside it; damage is seen without the key."""
    recipient, identity = key_pair
    kept = take_backup(recipients=(recipient,))
    place = kept.put(repository)
    proven = prove(repository, work_dir, identity)

    without = DUMPS.prove(repository, place=place, work_dir=work_dir)
    [entry] = read_catalog(repository).backups
    kept.put(repository, globals_sql_age=flip(kept.objects["globals.sql.age"], 60))
    damaged = DUMPS.prove(repository, place=place, work_dir=work_dir)

    assert without is not None
    assert (without.record.verdict, without.exit_code) == (Verdict.NOT_ATTEMPTED, 14)
    assert (entry.proven_at, entry.doubt) == (proven.record.finished_at, "")
    assert entry.not_attempted_at is not None
    assert damaged is not None
    assert (damaged.record.verdict, damaged.exit_code) == (Verdict.UNPROVEN, 13)
    assert read_catalog(repository).backups[0].proven_at is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("server_version_num", 990001, "PostgreSQL 99"), ("database_size_bytes", 1 << 60, "not enough space to restore")],
)
def test_a_host_without_the_programs_or_the_room_does_not_judge(
    field: str, value: int, reason: str, backup: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """What the host lacks is named, and says nothing of the backup."""
    record = DumpRecord.from_json(backup.objects["backup.json"], key="backup.json")
    source = record.source.model_copy(update={field: value})
    backup.put(repository, backup_json=record.model_copy(update={"source": source}).to_json())

    report = prove(repository, work_dir)

    assert (report.record.verdict, report.exit_code) == (Verdict.NOT_ATTEMPTED, 14)
    assert reason in report.record.reason
    [entry] = read_catalog(repository).backups
    assert entry.doubt.startswith("not proven yet: the proof of ")


def test_a_host_without_amcheck_does_not_judge_and_undoes_no_proof(
    backup: KeptBackup, repository: Repository, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of PostgreSQL without contrib restores as well as any, and cannot check indexes."""
    place = backup.put(repository)
    proven = prove(repository, work_dir)
    monkeypatch.setattr(amcheck, "EXTENSION", "amcheck_of_another_build")

    report = DUMPS.prove(repository, place=place, work_dir=work_dir)

    assert report is not None
    assert (report.record.verdict, report.exit_code) == (Verdict.NOT_ATTEMPTED, 14)
    assert "ProgramMissing: extension amcheck_of_another_build of PostgreSQL 17" in report.record.reason
    [entry] = read_catalog(repository).backups
    assert entry.proven_at == proven.record.finished_at


def test_an_interrupted_proof_undoes_none(backup: KeptBackup, repository: Repository, work_dir: Path) -> None:
    """Ctrl-C is as little a verdict as kill -9, which writes nothing."""
    place = backup.put(repository)
    proven = prove(repository, work_dir)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DUMPS.prove(repository, place=place, work_dir=work_dir, progress=interrupt)

    [entry] = read_catalog(repository).backups
    assert entry.proven_at == proven.record.finished_at
    assert entry.not_attempted_at is not None


def test_one_flipped_bit_in_an_encrypted_object_is_damage_and_not_a_missing_key(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path, key_pair: tuple[str, str]
) -> None:
    """Damage explains every other fault, so it is reported first."""
    recipient, identity = key_pair
    kept = take_backup(recipients=(recipient,))
    data = kept.objects["globals.sql.age"]
    repository_place = kept.put(repository, globals_sql_age=flip(data, 60))

    report = prove(repository, work_dir, identity)

    assert report.place == repository_place
    assert report.exit_code == 13
    assert "ChecksumMismatch" in report.record.reason


def test_a_restore_that_hangs_is_unproven_when_its_time_is_over(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """The time limit bounds everything, and nothing that hung is left running."""
    take_backup(HANGS_IN_A_COPY).put(repository)

    begun = time.monotonic()
    report = prove(repository, work_dir, timeout_s=HUNG_TIMEOUT_S)

    assert time.monotonic() - begun < HUNG_DEADLINE_S
    assert report.record.verdict is Verdict.UNPROVEN
    assert report.exit_code == 14
    assert "did not finish within 4 s" in report.record.reason
    assert not [mark for path in work_dir.iterdir() for mark in processes_in(path / "data")]


def test_a_server_that_crashes_under_a_proof_makes_it_unproven(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """kill -9 of the throwaway's processes is written down as a doubt, and leaves nothing behind."""
    take_backup(HANGS_IN_A_COPY).put(repository)

    with ThreadPoolExecutor(1) as pool:
        proving = pool.submit(prove, repository, work_dir, timeout_s=CRASH_DEADLINE_S)
        kill_server_of_proof(work_dir)
        report = proving.result()

    assert report.record.verdict is Verdict.UNPROVEN
    assert report.exit_code == 14
    assert report.record.reason
    assert "did not finish within" not in report.record.reason


def kill_server_of_proof(work_dir: Path) -> None:
    """Kill every process of the throwaway as soon as pg_restore has connected."""
    deadline = time.monotonic() + CRASH_DEADLINE_S
    while time.monotonic() < deadline:
        marks = [mark for path in work_dir.glob("throwaway-*/data") for mark in processes_in(path)]
        if any("CREATE INDEX" in _command_of(mark.pid) for mark in marks):
            for mark in marks:
                mark.signal(signal.SIGKILL)
            return
        time.sleep(0.02)


def _command_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:  # it ended between two looks
        return ""


def test_an_error_of_pg_restore_is_the_reason_and_shows_no_data(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """The message names the object that could not be restored; rows and statements stay out of it."""
    take_backup(
        "create function shop.fails(text) returns text immutable language plpgsql as"
        " 'begin if inet_server_addr() is null then raise exception ''no copy''; end if; return $1; end';"
        "create index fails_index on shop.customers (shop.fails(name));"
    ).put(repository)

    report = prove(repository, work_dir)

    assert report.record.verdict is Verdict.UNPROVEN
    assert report.exit_code == 14
    assert "fails_index" in report.record.reason
    assert "no copy" in report.record.reason
    assert "Zoë" not in report.record.reason


def test_there_is_no_proof_of_what_does_not_exist(backup: KeptBackup, repository: Repository, work_dir: Path) -> None:
    """A proof beside no backup would be a left-over that looks like a result."""
    with pytest.raises(ObjectMissing):
        DUMPS.prove(repository, place=backup.place, work_dir=work_dir)

    assert list(repository.store.list_objects()) == []


def test_a_difference_in_generated_columns_alone_says_so(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path
) -> None:
    """A dump carries no generated value: a restore computes it by today's function, and the rows are not at fault."""
    take_backup(
        """create function shop.twice(int) returns int immutable language sql as 'select $1 * 2';
        create table shop.doubled (a int, b int generated always as (shop.twice(a)) stored);
        insert into shop.doubled values (1);
        create or replace function shop.twice(int) returns int immutable language sql as 'select $1 * 3'"""
    ).put(repository)

    report = prove(repository, work_dir)

    assert report.record.verdict is Verdict.DIFFERS
    [difference] = report.record.differences
    assert difference.startswith("table shop.doubled: only its generated columns differ, in 1 row at most: a restore")
