"""Documents that somebody else wrote into a repository: one is listed as unreadable, and nothing else is affected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from synapse_ops.cli.backup import _catalog_json, _show_catalog
from synapse_ops.cli.info import _as_json, _show
from synapse_ops.cli.terminal import print_json
from synapse_ops.domain.backup.layout import BACKUP, HEARTBEAT, BackupPlace, new_backup_id, proof_name
from synapse_ops.errors import DocumentUnreadable, PlanChanged
from synapse_ops.operations.backup.catalog import read_catalog, read_proofs
from synapse_ops.operations.backup.dead_uploads import abort_uploads_of_the_dead
from synapse_ops.operations.backup.expire import apply_expiry, make_expiry_plan
from synapse_ops.operations.backup.expiry_plans import plan_key
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.backup.overview import overview_of
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.vectors.left_overs import files_of_run, nodes_of_run
from synapse_ops.systems.s3.store import UploadInfo
from tests.memory_store import MemoryStore
from tests.operations.expiry import NOW, POLICY, stored
from tests.stored_backups import IDENTITY, place_of

GOLDEN = Path(__file__).parents[2] / "domain" / "backup" / "golden"
HOSTILE = (
    b"[" * 1000 + b"]" * 1000,
    b'{"kind":' * 100_000,
    b"9" * 5000,
    b"NaN",
    b'{"kind": ["dump"]}',
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"\xff\xfe[\x00]\x00",
    b"null",
    b"[]",
    b"",
)
VALUES = (10**39, "\x1b]0;owned\x07", "9999-12-31T23:59:59.999999-12:00", [])


def variants(document: Any) -> Iterator[Any]:
    """Yield the document with each of its values, in turn, replaced by each hostile one."""

    def paths(value: Any) -> Iterator[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, each in inner:
            yield (name,)
            yield from ((name, *rest) for rest in paths(each))

    for path in paths(document):
        for value in VALUES:
            changed = json.loads(json.dumps(document))
            *outer, last = path
            holder = changed
            for name in outer:
                holder = holder[name]
            holder[last] = value
            yield changed


@pytest.mark.parametrize("data", HOSTILE)
def test_a_document_that_is_none_is_unreadable_and_affects_nothing_else(data: bytes, repository: Repository) -> None:
    """1,000 nested lists as backup.json, proof, heartbeat, lease or plan ended every command in RecursionError."""
    store: MemoryStore = repository.store  # type: ignore[assignment]
    [sound] = stored(store, 1)
    [doubtful] = stored(store, 2, database="doubtful")
    unreadable = place_of(NOW, database="unreadable")
    left_over = place_of(NOW, database="cut")
    for key in (
        unreadable.key(BACKUP),
        doubtful.place.key(proof_name(NOW)),
        left_over.key(HEARTBEAT),
        "leases/expiry.json",
        plan_key("0" * 16),
    ):
        store.put_bytes(key, data)
    store.uploads.append(UploadInfo(left_over.key("database.dump"), "1", NOW))

    catalog = read_catalog(repository)
    with hold_lease(repository, "expiry", owner="test", ttl_s=0.1):
        pass
    plan = make_expiry_plan(repository, POLICY, NOW)

    entries = {entry.place.subject: entry for entry in catalog.backups}
    assert entries["unreadable"].unreadable_reason.startswith(f"cannot read {unreadable.key(BACKUP)}: ")
    assert entries["doubtful"].proven_at is None
    assert entries["synapse"].proven_at is not None
    assert [row.place for row in catalog.left_overs] == [left_over]
    assert len(read_proofs(repository, doubtful.place)) == 1
    assert abort_uploads_of_the_dead(repository.store, left_over) == 0
    assert files_of_run(repository, left_over, {}) == ()
    assert nodes_of_run(repository, left_over) == frozenset()
    assert {entry.place: entry.removes for entry in plan.entries}[sound.place] is False
    with pytest.raises((DocumentUnreadable, PlanChanged)):
        apply_expiry(repository, "0" * 16, NOW)


@pytest.mark.parametrize("kind", ["dump", "snapshot", "rdb"])
def test_any_value_in_a_document_can_be_listed_and_shown(
    kind: str, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in one field: it is refused, or it adds, prints and plans as a value of ours does."""
    store: MemoryStore = repository.store  # type: ignore[assignment]
    backup = json.loads((GOLDEN / f"backup-{kind}.json").read_bytes())
    proof = json.loads((GOLDEN / f"proof-{kind}.json").read_bytes())
    subject = {"dump": "dätä", "snapshot": "documents", "rdb": "localhost:6379"}[kind]
    rows = [(changed, proof) for changed in variants(backup)] + [(backup, changed) for changed in variants(proof)]
    for number, (its_backup, its_proof) in enumerate(rows):
        place = BackupPlace(IDENTITY, kind, subject, new_backup_id(NOW, number.to_bytes(3, "big")))
        for name, body in ((BACKUP, its_backup), (proof_name(NOW), its_proof)):
            own = body if body.get("backup_id") != backup["backup_id"] else {**body, "backup_id": place.backup_id}
            store.put_bytes(place.key(name), json.dumps(own).encode())

    catalog = read_catalog(repository)
    overview = overview_of(repository, catalog, NOW)
    plan = make_expiry_plan(repository, POLICY, NOW + timedelta(seconds=1))
    _show_catalog("s3://memory/", replace(catalog, backups=catalog.backups[::6]))
    _show(overview, NOW)
    print_json([_catalog_json("s3://memory/", catalog), _as_json(overview, NOW)])

    shown = capsys.readouterr().out
    assert len(catalog.backups) == len(plan.entries) == len(rows)
    assert "\x1b" not in shown
    shown.encode()


def test_a_heartbeat_of_another_form_names_no_file(repository: Repository) -> None:
    """A heartbeat names what its run left on Qdrant's nodes; any other value in it ended `backup now`."""
    place = place_of(NOW)
    rows = {"on_nodes": [{"node": "http://n", "shard_id": 0, "name": "x"}], "cutting": None}
    for told in (
        rows | {"on_nodes": 5},
        rows | {"on_nodes": [5]},
        rows | {"on_nodes": [{"node": "http://n"}]},
        rows | {"cutting": {"node": "http://n", "shard_id": 0, "since": "yesterday"}},
        rows | {"cutting": [1]},
    ):
        repository.store.put_bytes(place.key(HEARTBEAT), json.dumps(told).encode())

        assert nodes_of_run(repository, place) == frozenset()
        assert files_of_run(repository, place, {}) == ()
    repository.store.put_bytes(place.key(HEARTBEAT), json.dumps(rows).encode())
    assert nodes_of_run(repository, place) == {"http://n"}
