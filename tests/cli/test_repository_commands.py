"""backup list and show, expire, pin, unpin and info: on a repository alone, in a real store, as operators call them."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import structlog
from click.testing import CliRunner, Result

from synapse_ops.cli.main import cli
from synapse_ops.domain.backup.layout import BACKUP
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.errors import ConfigError, Refused
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import StoredBackup, store_backup, store_proof

SCHEMAS = Path(__file__).parents[2] / "docs" / "json"
DAY = timedelta(days=1)


class Shop:
    """A repository with five backups of one database, the newest not proven, and one interrupted dump."""

    def __init__(self, url: str, access: StoreAccess, state_dir: Path) -> None:
        self.url = url
        self.access = access
        self.state_dir = state_dir
        self.store = ObjectStore(url, access)
        now = self.store.server_time()
        self.backups: list[StoredBackup] = []
        for age in (60, 50, 40, 20, 1):
            backup = store_backup(self.store, now - age * DAY)
            if age != 1:
                store_proof(self.store, backup, backup.record.finished_at + timedelta(minutes=1))
            self.backups.append(backup)
        store_proof(self.store, self.backups[-1], now, verdict=Verdict.UNPROVEN)
        cut = store_backup(self.store, now - 2 * DAY, database="büro [alt]")
        self.store.delete([cut.place.key(BACKUP)])

    def call(self, *arguments: str) -> Result:
        environment = {
            "AWS_ENDPOINT_URL": self.access.endpoint,
            "AWS_ACCESS_KEY_ID": self.access.access_key,
            "AWS_SECRET_ACCESS_KEY": self.access.secret_key,
            "SYNAPSE_SPEC": None,
            "SYNAPSE_REPOSITORY": self.url,
            "SYNAPSE_STATE_DIR": str(self.state_dir),
        }
        with structlog.testing.capture_logs():  # they go to stderr, which the runner does not own
            return CliRunner().invoke(cli, [*arguments], env=environment)

    def json(self, schema: str, *arguments: str) -> Any:
        """Call with --json; the output is one document that its schema accepts."""
        result = self.call(*arguments, "--json")
        assert result.exit_code == 0, result.output + repr(result.exception)
        document = json.loads(result.stdout)
        validator = jsonschema.Draft202012Validator(
            json.loads((SCHEMAS / f"{schema}.schema.json").read_text(encoding="utf-8")),
            format_checker=jsonschema.FormatChecker(),
        )
        validator.validate(document)
        return document


@pytest.fixture(scope="module")
def shop(object_store_access: StoreAccess, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One for all tests that leave it as it was."""
    url = f"s3://tests/{secrets.token_hex(8)}/database/"
    ObjectStore(url, object_store_access).create_bucket()
    return Shop(url, object_store_access, tmp_path_factory.mktemp("state"))


@pytest.fixture
def own_shop(bucket_url: str, object_store_access: StoreAccess, tmp_path: Path) -> Shop:
    """One to expire from."""
    return Shop(bucket_url, object_store_access, tmp_path)


def call_without_store(*arguments: str) -> Result:
    """Call for what is refused before anything is contacted."""
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "SYNAPSE_SPEC": None, "SYNAPSE_REPOSITORY": "s3://none/x/"}
    return CliRunner().invoke(cli, [*arguments], env=environment)


def test_backup_list_shows_every_backup_and_left_over(shop: Shop) -> None:
    """Newest first; what is not proven says why; an interrupted dump is named."""
    [listed] = shop.json("backup-list", "backup", "list")["repositories"]
    table = shop.call("backup", "list").stdout

    assert [row["backup_id"] for row in listed["backups"]] == [row.place.backup_id for row in reversed(shop.backups)]
    assert [row["is_proven"] for row in listed["backups"]] == [False, True, True, True, True]
    assert listed["left_overs"][0]["subject"] == "büro [alt]"
    assert all(f"{backup.place.backup_id} │ database/synapse" in table for backup in shop.backups)
    assert "NO: newest proof: unproven" in table
    assert "has no backup.json" in table


def test_backup_show_has_record_objects_and_proofs(shop: Shop) -> None:
    """Everything known of one backup; its record is backup.json itself."""
    backup = shop.backups[0]

    shown = shop.json("backup-show", "backup", "show", backup.place.backup_id)
    text = shop.call("backup", "show", backup.place.backup_id).stdout

    assert shown["record"] == backup.record.model_dump(mode="json")
    assert [proof["verdict"] for proof in shown["proofs"]] == ["proven"]
    assert backup.objects[0].sha256 in text
    assert "none: anyone who can read the bucket can read it" in text
    assert "100" in text.partition("rows")[2].splitlines()[0]


def test_an_id_that_does_not_exist_names_its_neighbours(shop: Shop) -> None:
    """A mistyped id is answered with the nearest ones."""
    result = shop.call("backup", "show", shop.backups[0].place.backup_id[:-1] + "9")

    assert isinstance(result.exception, ConfigError)
    assert shop.backups[0].place.backup_id in result.exception.detail


def test_a_plan_is_printed_then_applied_by_its_digest(own_shop: Shop) -> None:
    """Plan, approve, apply; the second apply does nothing."""
    [plan] = own_shop.json("expire-plan", "expire", "--plan", "--retention", "10d")["plans"]
    table = own_shop.call("expire", "--retention", "10d").stdout  # a plan is the default, as of restore

    assert (plan["totals"]["expired"], plan["totals"]["kept"]) == (3, 3)
    assert f"synapse-ops expire --apply {plan['digest']}" in table
    assert "older than 10 d, and the newer" in table
    refused = own_shop.call("expire", "--apply", plan["digest"])
    assert isinstance(refused.exception, Refused)

    done = own_shop.json("expire-apply", "expire", "--apply", plan["digest"], "--accept-ratio", "0.7")
    again = own_shop.json("expire-apply", "expire", "--apply", plan["digest"])

    assert [row["backup_id"] for row in done["removed"]] == [
        row.place.backup_id for row in reversed(own_shop.backups[:3])
    ]
    assert (again["removed"], again["applied_before"] is None) == ([], False)
    assert len(own_shop.json("backup-list", "backup", "list")["repositories"][0]["backups"]) == 2


def test_a_pinned_backup_is_in_no_plan_until_it_is_unpinned(shop: Shop) -> None:
    """pin and unpin, as JSON and as words."""
    oldest = shop.backups[0].place.backup_id

    pinned = shop.json("pin", "pin", oldest, "audit 2026", "--reason", "annual audit")
    [kept] = shop.json("expire-plan", "expire", "--plan", "--retention", "10d")["plans"]
    unpinned = shop.json("pin", "unpin", oldest, "audit 2026")

    assert (pinned["pins"], pinned["changed"], unpinned["pins"]) == (["audit 2026"], True, [])
    assert {row["backup_id"]: row["reason"] for row in kept["entries"]}[oldest] == "pinned: audit 2026"


def test_info_says_what_is_protected_and_since_when(shop: Shop) -> None:
    """RPO now is the age of the newest proven backup, whatever unproven ones are newer."""
    [info] = shop.json("info", "info")["repositories"]
    text = shop.call("info").stdout
    [database] = info["subjects"]

    assert (database["kind"], database["subject"]) == ("dump", "synapse")
    assert database["newest_backup_id"] == shop.backups[-1].place.backup_id
    assert database["newest_proven_backup_id"] == shop.backups[-2].place.backup_id
    assert 0 <= database["rpo_now_s"] - 20 * 86400 < 600
    assert database["predicted_restore_s"] == pytest.approx(4.0)
    assert info["missing_store_features"] is not None
    assert "left-overs: 1 prefix," in text
    assert "about 4 s" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["expire", "--plan", "--apply", "0" * 16],
        ["expire", "--plan", "--retention", "10d", "--accept-ratio", "1"],
        ["expire", "--apply", "0" * 16, "--retention", "10d"],
        ["expire", "database", "--apply", "0" * 16],
        ["expire", "--apply", "soon"],
        ["backup", "list", "databases"],
        ["info", "vectors/"],
        ["verify", "20261123T201726Z-3f9a1c", "--all-unproven"],
        ["restore", "20261123T201726Z-3f9a1c"],
        ["restore", "20261123T201726Z-3f9a1c", "--to", ""],
        ["restore", "20261123T201726Z-3f9a1c", "--to", "x", "--plan", "--apply"],
        ["unpin", "20261123T201726Z-3f9a1c"],
    ],
)
def test_bad_arguments_are_refused_before_anything_is_contacted(arguments: list[str]) -> None:
    """Nothing is guessed where two meanings are possible; both sorts of refusal exit with 2 (cli/main.py)."""
    result = call_without_store(*arguments)

    assert isinstance(result.exception, ConfigError) or result.exit_code == 2, result.output


def test_a_subject_that_has_no_backup_is_refused_with_those_that_have(shop: Shop) -> None:
    """A mistyped name is not a repository without backups; `verify` of nothing would look like success."""
    for command in (["backup", "list"], ["verify"], ["info"], ["expire", "--plan", "--retention", "9d"]):
        result = shop.call(*command, "database/synaps")

        assert result.exit_code == 2, (command, result.output)
        assert "there is no backup of database/synaps" in result.stderr
        assert "database/synapse" in result.stderr


@pytest.mark.parametrize("retention", ["0d", "soon", "-1d"])
def test_a_window_that_keeps_nothing_is_refused(retention: str) -> None:
    """A retention of 0 would be a deletion by another name."""
    assert isinstance(call_without_store("expire", "--plan", "--retention", retention).exception, ConfigError)


def test_a_repository_alone_does_not_say_its_retention() -> None:
    """No default window is invented for somebody else's repository."""
    result = call_without_store("expire", "--plan")

    assert isinstance(result.exception, ConfigError)
    assert "--retention 30d" in result.exception.hint


def test_a_key_that_holds_an_escape_sequence_does_not_reach_the_terminal(own_shop: Shop) -> None:
    """Whoever may write one key names a database as they like: a title, a colour, text that runs backwards."""
    name = "\x1b]0;owned\x07\x9b31m\u202e"
    store_backup(own_shop.store, own_shop.store.server_time() - DAY, database=name)
    cut = store_backup(own_shop.store, own_shop.store.server_time() - DAY, database=name, number=1)
    own_shop.store.delete([cut.place.key(BACKUP)])

    for command in (("backup", "list"), ("info",), ("expire", "--plan", "--retention", "10d")):
        shown = own_shop.call(*command).output
        listed = own_shop.call(*command, "--json").output
        assert r"\x1b]0;" in shown
        assert not set(shown + listed) & set("\x1b\x07\x9b\u202e")
        assert json.dumps(name) in json.dumps(json.loads(listed))
