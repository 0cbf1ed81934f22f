"""`verify` and `restore` work on a repository and keys alone, and their exit codes say what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synapse_ops.cli.main import main
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.object_store import StoreAccess
from tests.recovery.backups import KeptBackup, flip
from tests.servers import PostgresServer


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

    [proof] = json.loads(capsys.readouterr().out)
    assert status == 0
    assert proof["verdict"] == "proven"
    assert proof["url"].startswith(repository.url)
    assert run("verify", "--work-dir", str(work_dir)) == 0
    assert "nothing to prove" in capsys.readouterr().out


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

    status = run("restore", place.backup_id, "--to", "a_new_name", "--target", "env:TARGET_DSN", "--json")

    text = capsys.readouterr().out
    plan = json.loads(text)
    assert status == 0
    assert plan["target"].endswith("/a_new_name")
    assert plan["row_count"] == 3200
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

    assert run("restore", place.backup_id, "--to", "postgres", "--target", "env:TARGET_DSN", "--apply") == 10
