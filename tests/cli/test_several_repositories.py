"""Commands over all repositories of a spec: no kind is judged by another's rules or hidden by its failure."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import structlog
from click.testing import CliRunner, Result

from synapse_ops.cli.main import cli
from synapse_ops.cli.options import Place
from synapse_ops.errors import WORST_FIRST, worst_exit_code
from synapse_ops.operations import backup_kinds
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.cli.test_main import all_errors
from tests.stored_backups import StoredBackup, store_backup, store_proof, store_snapshot

SCHEMAS = Path(__file__).parents[2] / "docs" / "json"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
PROOF_TAKES = timedelta(minutes=1)


class TwoKinds:
    """Proven dumps and snapshots of 40, 20 and 1 days. The spec keeps dumps for 10 days and snapshots for 90.

    shared: one repository for both kinds, to which --repository is set; None: each in that of the spec.
    """

    def __init__(self, folder: Path, access: StoreAccess, root: str, *, shared: str | None = None) -> None:
        keys = f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
        (folder / "store").write_text(keys, encoding="utf-8")
        (folder / "store").chmod(0o600)
        self.spec = folder / "infrastructure.yaml"
        self.spec.write_text(
            f"""
name: test
object_store: {{endpoint: "{access.endpoint}", credentials: "file:{folder}/store"}}
backup:
  database: {{destination: "{root}database/", retention: 10d, wal_archiving: "off"}}
  vectors: {{destination: "{root}vectors/", retention: 90d}}
retention: {{max_expiry_ratio: 1.0}}
""",
            encoding="utf-8",
        )
        dumps = ObjectStore(shared or f"{root}database/", access)
        snapshots = ObjectStore(shared or f"{root}vectors/", access)
        self.dump_store, self.snapshot_store, self.now = dumps, snapshots, dumps.server_time()
        self.dumps = self.add_dumps("synapse", number=1)
        self.snapshots = [
            self._proven(snapshots, store_snapshot(snapshots, self.now - age * DAY)) for age in (40, 20, 1)
        ]
        self.state_dir = folder / "state"
        self.environment = {"SYNAPSE_SPEC": str(self.spec), "SYNAPSE_REPOSITORY": shared}
        self.environment |= {"AWS_ENDPOINT_URL": access.endpoint, "AWS_ACCESS_KEY_ID": access.access_key}
        self.environment |= {"AWS_SECRET_ACCESS_KEY": access.secret_key}

    def add_dumps(self, database: str, *, number: int) -> list[str]:
        ages = (40, 20, 1)
        made = [store_backup(self.dump_store, self.now - age * DAY, database=database, number=number) for age in ages]
        return [self._proven(self.dump_store, backup) for backup in made]

    def _proven(self, store: ObjectStore, backup: StoredBackup) -> str:
        store_proof(store, backup, backup.record.finished_at + PROOF_TAKES)
        return backup.place.backup_id

    def call(self, *arguments: str) -> Result:
        with structlog.testing.capture_logs():
            return CliRunner().invoke(cli, [*arguments, "--state-dir", str(self.state_dir)], env=self.environment)

    def json(self, schema: str, *arguments: str, status: int = 0) -> Any:
        result = self.call(*arguments, "--json")
        assert result.exit_code == status, result.output + repr(result.exception)
        document = json.loads(result.stdout)
        jsonschema.validate(document, json.loads((SCHEMAS / f"{schema}.schema.json").read_text(encoding="utf-8")))
        return document

    def listed(self) -> set[str]:
        repositories = self.json("backup-list", "backup", "list")["repositories"]
        return {row["backup_id"] for one in repositories for row in one["backups"]}


@pytest.fixture
def root(object_store_access: StoreAccess) -> str:
    url = f"s3://tests/{secrets.token_hex(8)}/"
    ObjectStore(url, object_store_access).create_bucket()
    return url


@pytest.fixture
def two(tmp_path: Path, object_store_access: StoreAccess, root: str) -> TwoKinds:
    return TwoKinds(tmp_path, object_store_access, root)


@pytest.fixture
def shared(tmp_path: Path, object_store_access: StoreAccess, root: str) -> TwoKinds:
    """All in one repository, which --repository names; no spec may do that."""
    return TwoKinds(tmp_path, object_store_access, root, shared=f"{root}all/")


def test_a_repository_of_two_kinds_is_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read twice, it would hold every backup id twice, and no command that takes an id would accept one."""
    dumps, snapshots = backup_kinds.DUMPS, replace(backup_kinds.SNAPSHOTS, repository=Stack.database_repository)
    monkeypatch.setattr(backup_kinds, "KINDS", (dumps, snapshots))
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", "secret")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        "object_store: {credentials: 'env:TEST_STORE'}\n"
        "backup: {database: {destination: 's3://one/all/', wal_archiving: 'off'}}\n"
    )

    sources = Place(spec, tmp_path / "state").sources()

    assert [source.repository.url for source in sources] == ["s3://one/all/"]


def test_kinds_that_share_a_repository_expire_each_by_its_own_retention(shared: TwoKinds) -> None:
    """Once one plan judged all by one retention: snapshots kept for 90 days went after the 10 of the dumps."""
    dumps, snapshots = shared.json("expire-plan", "expire", "--plan")["plans"]

    assert (dumps["subject"], snapshots["subject"]) == ("database", "vectors")
    assert {row["kind"] for row in dumps["entries"]} == {"dump"}
    assert {row["kind"] for row in snapshots["entries"]} == {"snapshot"}
    shared.json("expire-apply", "expire", "--apply", dumps["digest"])
    shared.json("expire-apply", "expire", "--apply", snapshots["digest"])
    assert shared.listed() == {*shared.dumps[1:], *shared.snapshots}
    assert len(shared.json("backup-list", "backup", "list")["repositories"]) == 1


def test_a_plan_of_one_subject_leaves_the_others_alone(two: TwoKinds) -> None:
    """The digest is found in the repository that holds it, and only what the plan names goes."""
    orders = two.add_dumps("orders", number=2)
    [plan] = two.json("expire-plan", "expire", "--plan", "database/synapse")["plans"]
    [other] = two.json("expire-plan", "expire", "--plan", "vectors", "--retention", "10d")["plans"]

    done = two.json("expire-apply", "expire", "--apply", other["digest"])
    assert {row["kind"] for row in done["removed"]} == {"snapshot"}
    assert two.listed() == {*two.dumps, *orders, *two.snapshots[1:]}
    two.json("expire-apply", "expire", "--apply", plan["digest"])
    assert two.listed() == {*two.dumps[1:], *orders, *two.snapshots[1:]}
    missing = two.call("expire", "--apply", "0" * 16)
    assert "there is no plan" in str(missing.exception)


def test_an_id_is_found_whatever_its_kind_and_a_mistyped_one_names_neighbours_of_all(two: TwoKinds) -> None:
    """show, pin and unpin take an id alone."""
    for backup_id, kind in ((two.dumps[0], "dump"), (two.snapshots[0], "snapshot")):
        assert two.json("backup-show", "backup", "show", backup_id)["record"]["kind"] == kind
        assert two.json("pin", "pin", backup_id, "audit")["kind"] == kind
        assert two.json("pin", "unpin", backup_id, "--all")["pins"] == []
        near = two.call("backup", "show", backup_id[:-1] + "f")
        assert backup_id in near.exception.detail  # type: ignore[union-attr]


def test_a_subject_narrows_what_is_listed_and_summed(two: TwoKinds) -> None:
    """`vectors` alone is every collection; `info` says of each what is protected."""
    [vectors] = two.json("backup-list", "backup", "list", "vectors")["repositories"]
    summed = two.json("info", "info")["repositories"]
    [one] = two.json("info", "info", "vectors/documents")["repositories"]

    assert [row["backup_id"] for row in vectors["backups"]] == list(reversed(two.snapshots))
    assert [(row["kind"], row["subject"]) for part in summed for row in part["subjects"]] == [
        ("dump", "synapse"),
        ("snapshot", "documents"),
    ]
    assert [row["backup_count"] for row in one["subjects"]] == [3]


def test_verify_tries_the_newest_unproven_backup_of_each_subject(two: TwoKinds) -> None:
    """None of these can be restored: each is tried, and written down, after the failure of the one before."""
    older, newer = (store_backup(two.dump_store, two.now - age * HOUR, database="orders") for age in (3, 2))
    other = store_backup(two.dump_store, two.now - HOUR, database="synapse")
    snapshot = store_snapshot(two.snapshot_store, two.now - HOUR)
    expected = [("dump", newer), ("dump", other), ("snapshot", snapshot)]

    proofs = two.json("verify", "verify", status=13)["proofs"]
    everyone = two.json("verify", "verify", "database/orders", "--all-unproven", status=13)["proofs"]

    assert [(row["kind"], row["backup_id"]) for row in proofs] == [
        (kind, one.place.backup_id) for kind, one in expected
    ]
    assert all(row["verdict"] == "unproven" for row in proofs)
    assert {row["backup_id"] for row in everyone} == {older.place.backup_id, newer.place.backup_id}


def test_a_repository_that_cannot_be_read_hides_no_other(two: TwoKinds, root: str) -> None:
    """The bucket of the collections does not exist: the dumps are listed all the same, and the failure has a name."""
    text = two.spec.read_text(encoding="utf-8")
    two.spec.write_text(text.replace(f"{root}vectors/", "s3://no-such-bucket-here/vectors/"), encoding="utf-8")

    body = two.json("backup-list", "backup", "list", status=two.call("backup", "list").exit_code)

    assert [row["subject"] for row in body["failures"]] == ["vectors"]
    assert [row["backup_id"] for row in body["repositories"][0]["backups"]] == list(reversed(two.dumps))
    assert two.call("backup", "list").exit_code == body["failures"][0]["exit_code"] > 0
    plans = two.json("expire-plan", "expire", "--plan", status=body["failures"][0]["exit_code"])
    assert [plan["subject"] for plan in plans["plans"]] == ["database"]
    assert two.json("backup-show", "backup", "show", two.dumps[0])["backup"]["kind"] == "dump"


def test_every_exit_code_has_its_place_among_the_worst() -> None:
    """A bug outranks bad data, bad data outranks doubt; a code without a place ends in a traceback."""
    assert {kind.exit_code for kind in all_errors() if kind.__module__ == "synapse_ops.errors"} == set(WORST_FIRST)
    assert worst_exit_code([0, 14, 12, 13, 0]) == 13
    assert worst_exit_code([12, 1, 13]) == 1
    assert worst_exit_code([0, 0]) == 0


def test_info_begins_with_to_when_everything_can_be_restored(two: TwoKinds) -> None:
    """The first line is the sentence; the table has a row for each subject, what is wrong before what is not."""
    store_proof(two.dump_store, store_backup(two.dump_store, two.now - HOUR, database="synapse"), two.now - HOUR / 2)

    page = two.json("info", "info")["recoverability"]
    first, *rest = two.call("info").output.splitlines()
    [one] = two.json("info", "info", "database/synapse")["recoverability"]["rows"]

    assert first == page["sentence"]
    assert "You can restore synapse and collection documents to" in first
    assert any("database/synapse" in line and "about 4 s" in line for line in rest)
    assert (one["objectives_met"], one["wrong"], one["next_step"]) == (True, [], "backup")
    assert {row["subject"] for row in page["rows"]} == {"synapse", "documents"}
