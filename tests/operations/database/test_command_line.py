"""`verify` and `restore` work on a repository and keys alone, and their exit codes say what was found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from synapse_ops.cli.main import main
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import KeptBackup, flip, make_stack
from tests.servers import PostgresServer

SCHEMAS = Path(__file__).parents[3] / "docs" / "json"


@pytest.fixture(autouse=True)
def bare_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, object_store_access: StoreAccess, repository: Repository
) -> None:
    """A host with a URL and keys: no spec, no state, no Dagster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNAPSE_REPOSITORY", repository.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store_access.endpoint or "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store_access.secret_key or "")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def test_verify_exits_0_only_for_what_is_proven(
    backup: KeptBackup, repository: Repository, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON on stdout is the proof's own document and where it lies."""
    place = backup.put(repository)

    status = run("verify", place.backup_id, "--work-dir", str(work_dir), "--json")

    body = json.loads(capsys.readouterr().out)
    jsonschema.validate(body, json.loads((SCHEMAS / "verify.schema.json").read_text()))
    [proof] = body["proofs"]
    assert status == 0
    assert proof["verdict"] == "proven"
    assert (proof["kind"], proof["subject"]) == ("dump", place.subject)
    assert proof["url"].startswith(repository.url)
    assert run("verify", f"database/{place.subject}", "--work-dir", str(work_dir)) == 0
    assert "nothing to prove" in capsys.readouterr().out


def test_the_day_of_the_disaster_needs_no_key_that_writes(
    backup: KeptBackup,
    repository: Repository,
    reader_access: StoreAccess,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither a hold nor a proof can be written with keys that may only read; plan, report and verdict say so."""
    place = backup.put(repository)
    before = list(repository.store.list_objects())
    restore = ("restore", place.backup_id, "--to", str(work_dir / "new"), "--work-dir", str(work_dir))
    assert run(*restore) == 0
    assert "without a hold" not in capsys.readouterr().out  # with keys that write

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", reader_access.access_key or "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", reader_access.secret_key or "")
    assert run("verify", place.backup_id, "--work-dir", str(work_dir)) == 0
    verdict = capsys.readouterr().out
    assert run(*restore, "--plan") == 0
    plan = capsys.readouterr().out
    assert run(*restore, "--apply") == 0
    report = capsys.readouterr().out

    assert "PROVEN" in verdict
    assert "not recorded: the object store refused access" in verdict
    assert "would be read without a hold, since these keys may not write" in plan
    assert "was read without a hold, since these keys may not write" in report
    assert (work_dir / "new" / "PG_VERSION").is_file()
    shutil.rmtree(work_dir / "new")
    assert list(repository.store.list_objects()) == before


def test_verify_exits_13_for_damage_and_names_the_object(
    backup: KeptBackup, repository: Repository, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged is not the same as not proven yet: nobody needs to try again."""
    backup.put(repository, structure_json=flip(backup.objects["structure.json"], 9))

    status = run("verify", "--all-unproven", "--work-dir", str(work_dir))

    assert status == 13
    assert "structure.json is not what was written" in capsys.readouterr().out


def test_a_plan_changes_nothing_and_says_what_apply_would_do(
    backup: KeptBackup,
    repository: Repository,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server is named by reference, so that no password is in argv, and none is printed."""
    place = backup.put(repository)
    monkeypatch.setenv("TARGET_DSN", postgres_server.conninfo())

    status = run("restore", place.backup_id, "--to", "a_new_name", "--server", "env:TARGET_DSN", "--json")

    text = capsys.readouterr().out
    plan = json.loads(text)
    assert status == 0
    assert plan["target"].endswith("/a_new_name")
    assert plan["item_count"] == 3200
    jsonschema.validate(plan, json.loads((SCHEMAS / "restore.schema.json").read_text()))
    assert "tests-only" not in text


def test_a_password_in_an_argument_is_refused_and_not_repeated(
    backup: KeptBackup, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every user of a host can read the arguments of every process."""
    place = backup.put(repository)

    status = run("restore", place.backup_id, "--to", "postgresql://u:hunter2@host/new")

    assert status == 2
    assert "hunter2" not in capsys.readouterr().err


def test_restore_into_what_exists_exits_10(
    backup: KeptBackup,
    repository: Repository,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused before anything was changed."""
    place = backup.put(repository)
    monkeypatch.setenv("TARGET_DSN", postgres_server.conninfo())

    assert run("restore", place.backup_id, "--to", "postgres", "--server", "env:TARGET_DSN", "--apply") == 10


def test_a_directory_is_a_target_too(
    backup: KeptBackup, repository: Repository, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path after --to is a data directory, for which no server is asked; the plan makes nothing."""
    place = backup.put(repository)

    status = run("restore", place.backup_id, "--to", str(work_dir / "new"))

    assert status == 0
    assert str(work_dir / "new") in capsys.readouterr().out
    assert not (work_dir / "new").exists()
    assert run("restore", place.backup_id, "--to", str(work_dir / "new"), "--server", "env:X") == 2


def test_a_database_is_taken_and_shown_by_commands_alone(
    postgres_server: PostgresServer,
    fresh_database: Callable[..., str],
    bucket_url: str,
    object_store_access: StoreAccess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`backup now database/NAME` takes it; a name that the spec does not have is refused before anything is taken."""
    monkeypatch.delenv("SYNAPSE_REPOSITORY")
    conninfo = fresh_database()
    stack = make_stack(tmp_path, conninfo, bucket_url, object_store_access)
    [name] = stack.spec.database.databases
    spec = ("--spec", str(stack.loaded.path))

    assert run("backup", "now", f"database/{name}", "database/nope", *spec) == 2
    assert f"database/nope: allowed: database/{name}" in capsys.readouterr().err
    assert read_catalog(stack.database_repository()).object_count == 0
    assert run("backup", "now", f"database/{name}", "database", "--json", *spec) == 0

    body = json.loads(capsys.readouterr().out)
    jsonschema.validate(body, json.loads((SCHEMAS / "backup-now.schema.json").read_text()))
    [taken] = body["backups"]
    assert (taken["kind"], taken["subject"], taken["set_id"]) == ("dump", name, body["set_id"])
    assert run("backup", "show", taken["backup_id"], *spec) == 0
    assert "database size" in capsys.readouterr().out


def test_what_cannot_be_taken_stops_no_other_and_hides_none(
    fresh_database: Callable[..., str],
    bucket_url: str,
    object_store_access: StoreAccess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first database is not there, nor is the third: the second is taken, and printed."""
    monkeypatch.delenv("SYNAPSE_REPOSITORY")
    stack = make_stack(tmp_path, fresh_database(), bucket_url, object_store_access)
    [name] = stack.spec.database.databases
    path = stack.loaded.path
    path.write_text(path.read_text().replace(f'databases: ["{name}"]', f'databases: [missing, "{name}", absent]'))

    status = run("backup", "now", "--spec", str(path))

    shown = capsys.readouterr()
    [entry] = read_catalog(stack.database_repository()).backups
    assert status != 0
    assert entry.place.backup_id in shown.out
    assert "database/missing:" in shown.err
    assert "database/absent:" in shown.err
