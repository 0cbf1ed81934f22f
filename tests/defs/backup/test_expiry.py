"""Expiry by Dagster's own runs: nothing goes without the digest of a plan, and then exactly what that plan named.

Databases and collections share the code, so that every claim is made of both. Runs are executed in this process on a
real instance; the repository is a real store that holds proven backups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.backup.definitions import backup_definitions
from synapse_ops.defs.backup.kinds import COLLECTIONS, DATABASES, AssetKind
from synapse_ops.defs.place import Place
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.pins import pin_backup
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.dagster_instances import shared_definitions
from tests.stored_backups import StoredBackup, store_backup, store_proof, store_snapshot

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
AGES_DAYS = (40, 30, 20, 5, 1)  # with a window of 10 days: the first two go, the third reaches back to the window
NO_PLAN = "0123456789abcdef"


@dataclass(frozen=True)
class Flow:
    """One kind of backup, and how a backup of it is stored."""

    kind: AssetKind
    store: Callable[[ObjectStore, datetime], StoredBackup]


FLOWS = [
    Flow(DATABASES, store_backup),
    Flow(COLLECTIONS, store_snapshot),
]


@dataclass
class Expiry:
    """A repository of one kind, and a Dagster instance whose jobs plan and apply its expiry."""

    flow: Flow
    store: ObjectStore
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    stack: Stack

    def fill(self, *ages_days: int) -> list[str]:
        """Store proven backups of these ages; return their ids in the order of the ages."""
        ids = []
        for age in ages_days:
            backup = self.flow.store(self.store, NOW - age * DAY)
            store_proof(self.store, backup, backup.record.finished_at + timedelta(minutes=5))
            ids.append(backup.place.backup_id)
        return ids

    def ids(self) -> list[str]:
        """Return the ids of the backups that the repository holds, oldest first."""
        return sorted(entry.place.backup_id for entry in read_catalog(Repository(self.store)).backups)

    def plan(self) -> str:
        """Run the job that plans; return the digest that its asset's page shows."""
        run = self.run("expire_plan", selection=[self.flow.kind.plan_key])
        assert run.success
        [made] = run.asset_materializations_for_node(self.flow.kind.plan_key.to_user_string())
        return str(made.metadata["plan_digest"].value)

    def apply(self, digest: str) -> dg.ExecuteInProcessResult:
        config = {"kind": self.flow.kind.kind.word, "plan_digest": digest}
        return self.run("expire_apply", config={"ops": {"apply_expiry": {"config": config}}})

    def run(
        self, job: str, *, config: dict[str, object] | None = None, selection: list[dg.AssetKey] | None = None
    ) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config=config, asset_selection=selection, instance=self.instance, raise_on_error=False
        )

    def scheduled(self) -> dg.ExecuteInProcessResult:
        """Evaluate one tick of the expiry schedule and execute the run that it asks for, as the daemon does."""
        schedule = self.definitions.resolve_schedule_def("expiry_schedule")
        [request] = schedule.evaluate_tick(dg.build_schedule_context(self.instance, NOW)).run_requests or []
        return self.run(schedule.job.name, config=dict(request.run_config))

    def removed(self, run: dg.ExecuteInProcessResult) -> dict[str, object]:
        """Return what a run reported to the retention set of this kind."""
        steps = [run.asset_materializations_for_node(step.step_key) for step in run.get_step_success_events()]  # type: ignore[arg-type]
        [made] = [event for step in steps for event in step if event.asset_key == self.flow.kind.retention_key]
        return {name: value.value for name, value in made.metadata.items()}


def failure_text(run: dg.ExecuteInProcessResult) -> str:
    """Return what the page of a failed run says, and that it is our own words and no traceback of a client."""
    assert not run.success
    [failed] = run.get_step_failure_events()
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cls_name == "Failure"
    return str(error.message)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as found:
        yield found


@pytest.fixture(params=FLOWS, ids=["databases", "collections"])
def expiry(
    request: pytest.FixtureRequest,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    bucket_url: str,
    object_store_access: StoreAccess,
    monkeypatch: pytest.MonkeyPatch,
) -> Expiry:
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:TEST_STORE'}}\n"
        f"backup:\n"
        f"  database: {{destination: '{bucket_url}databases/', retention: 10d}}\n"
        f"  vectors: {{destination: '{bucket_url}vectors/', retention: 10d}}\n"
    )
    stack = open_stack(spec, tmp_path)
    place = Place(spec, tmp_path, is_embedded=True)
    definitions = dg.Definitions.merge(shared_definitions(monkeypatch, stack), backup_definitions(stack.spec, place))
    instance.wipe_assets([flow.kind.plan_key for flow in FLOWS])
    repository = request.param.kind.kind.repository(stack)
    return Expiry(request.param, ObjectStore(repository.url, object_store_access), instance, definitions, stack)


def test_the_right_digest_removes_exactly_its_plan_and_only_once(expiry: Expiry) -> None:
    """What the plan's page lists is what goes; the digest is then spent, and does nothing to what comes later."""
    backups = expiry.fill(*AGES_DAYS)
    digest = expiry.plan()
    assert expiry.ids() == backups

    applied = expiry.removed(expiry.apply(digest))
    assert (applied["removed"], applied["skipped"], applied["plan_digest"]) == (2, 0, digest)
    assert expiry.ids() == backups[2:]

    [old] = expiry.fill(50)
    again = expiry.removed(expiry.apply(digest))
    assert (again["removed"], expiry.ids()) == (0, [old, *backups[2:]])
    assert "was applied at" in str(again["report"])


def test_a_digest_that_names_no_plan_is_refused_with_the_one_that_does(expiry: Expiry) -> None:
    """An empty field, a typing error, a plan of yesterday: refused with the newest plan, nothing removed."""
    backups = expiry.fill(*AGES_DAYS)
    never_planned = failure_text(expiry.apply(NO_PLAN))
    newest = expiry.plan()

    assert "no plan has been made yet" in never_planned
    for digest in ("", "latest", NO_PLAN):
        refused = failure_text(expiry.apply(digest))
        assert f"newest plan: {newest}" in refused
        assert "then start expire_apply with its plan_digest" in refused
        assert digest in refused
    assert expiry.ids() == backups


def test_a_plan_of_the_other_kind_is_no_approval(expiry: Expiry, object_store_access: StoreAccess) -> None:
    """A digest belongs to the repository that it was made for, although the jobs look alike."""
    other = next(flow for flow in FLOWS if flow is not expiry.flow)
    backups = expiry.fill(*AGES_DAYS)
    theirs = Expiry(other, expiry.store, expiry.instance, expiry.definitions, expiry.stack).plan()

    assert f"there is no plan {theirs}" in failure_text(expiry.apply(theirs))

    assert expiry.ids() == backups


def test_a_pin_after_the_plan_keeps_its_backup(expiry: Expiry) -> None:
    """The run checks each entry again: what a person asked to keep meanwhile stays, and the page counts it."""
    backups = expiry.fill(*AGES_DAYS)
    digest = expiry.plan()
    repository = Repository(expiry.store)
    [oldest] = [row.place for row in read_catalog(repository).backups if row.place.backup_id == backups[0]]
    pin_backup(repository, oldest, "audit", NOW)

    applied = expiry.removed(expiry.apply(digest))

    assert (applied["removed"], applied["skipped"]) == (1, 1)
    assert expiry.ids() == [backups[0], *backups[2:]]


def test_the_schedules_run_plans_and_carries_out_its_own_plan(expiry: Expiry) -> None:
    """One run, no person: approved by whoever switched the schedule on. The next night has nothing to do."""
    backups = expiry.fill(*AGES_DAYS)

    first, second = expiry.scheduled(), expiry.scheduled()

    assert (first.success, second.success) == (True, True)
    assert [expiry.removed(run)["removed"] for run in (first, second)] == [2, 0]
    assert expiry.ids() == backups[2:]


def test_the_schedules_run_stops_and_asks_above_the_ratio(expiry: Expiry) -> None:
    """60 % of the set in one night is a mistake until a person says otherwise; the plan is there to be read."""
    backups = expiry.fill(60, 50, 40, 20, 1)

    refused = failure_text(expiry.scheduled())

    [planned] = expiry.instance.fetch_materializations(expiry.flow.kind.plan_key, limit=1).records
    assert planned.asset_materialization is not None
    digest = planned.asset_materialization.metadata["plan_digest"].value
    assert "would remove 3 of 5 backups" in refused
    assert "limit 50% (retention.max_expiry_ratio)" in refused
    assert f"synapse-ops expire --apply {digest} --accept-ratio 0.61" in refused
    assert expiry.ids() == backups


def test_one_kind_that_refuses_stops_no_other(expiry: Expiry, object_store_access: StoreAccess) -> None:
    """The scheduled run is red and names the kind; what the others planned is carried out and reported."""
    expiry.fill(60, 50, 40, 20, 1)
    [other] = [flow for flow in FLOWS if flow is not expiry.flow]
    url = other.kind.kind.repository(expiry.stack).url
    theirs = Expiry(other, ObjectStore(url, object_store_access), expiry.instance, expiry.definitions, expiry.stack)
    backups = theirs.fill(*AGES_DAYS)

    run = expiry.scheduled()

    assert "would remove 3 of 5 backups" in failure_text(run)
    assert theirs.removed(run)["removed"] == 2
    assert theirs.ids() == backups[2:]
