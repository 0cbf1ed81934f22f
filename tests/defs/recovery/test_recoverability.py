"""The page of the night in Dagster: red while nothing is proven, fresh at each news, the same sentence everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.backup.age_checks import BACKUP_AGE, PROOF_AGE
from synapse_ops.defs.backup.kinds import DATABASES, asset_kinds_of
from synapse_ops.defs.event_metadata import LINE, summary
from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.health.assets import REPORT_CHECK
from synapse_ops.defs.recovery.recoverability import (
    CHECK_NAME,
    RECOVERABILITY_KEY,
    REFRESH_S,
    check_keys_of,
    refresh,
    what_to_do,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.services.prober.protection import protection
from synapse_ops.systems.dagster_storage import last_evaluation
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import store_backup, store_proof

NOW = datetime.now(UTC).replace(microsecond=0)
AGE_CHECKS = ((DATABASES.backup_key, BACKUP_AGE), (DATABASES.proof_key, PROOF_AGE))
OTHER_CHECK = dg.AssetCheckKey(dg.AssetKey("health_report"), "everything_healthy")


@dataclass
class Night:
    """A store, the definitions that read it, and the instance that the sensor reports to."""

    store: ObjectStore
    definitions: dg.Definitions
    stack: StackResource
    spec_path: Path
    instance: dg.DagsterInstance
    cursor: str | None = None

    def tick(self, now_s: float = NOW.timestamp()) -> bool:
        """Evaluate the sensor once and record what it reports; say whether it reported."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        kinds = asset_kinds_of(self.stack.open().spec)
        checks = check_keys_of(self.definitions) - {dg.AssetCheckKey(RECOVERABILITY_KEY, CHECK_NAME)}
        result = refresh(context, self.stack, kinds, checks, now_s)
        if isinstance(result, dg.SkipReason):
            return False
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = result.cursor
        return True

    def evaluations(self, key: dg.AssetKey, name: str) -> list[object]:
        history = self.instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(key, name), 100)
        return list(history)

    @property
    def check(self) -> dg.AssetCheckEvaluation:
        found = last_evaluation(self.instance, RECOVERABILITY_KEY, CHECK_NAME)
        assert found is not None
        return found

    @property
    def wrong_now(self) -> str:
        found = self.page.metadata.get("wrong_now")
        return str(found.value) if found is not None else ""

    @property
    def page(self) -> dg.AssetMaterialization:
        [record] = self.instance.fetch_materializations(RECOVERABILITY_KEY, limit=1).records
        assert record.asset_materialization is not None
        return record.asset_materialization


@pytest.fixture
def night(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Night]:
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:TEST_STORE'}}\n"
        f"qdrant: {{host: 127.0.0.1, port: 1}}\n"
        f"backup:\n  database: {{destination: '{bucket_url}', wal_archiving: 'off'}}\n"
        f"  vectors: {{destination: '{bucket_url[:-1]}-vectors/'}}\n"
    )
    monkeypatch.setenv("SYNAPSE_SPEC", str(spec))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("SYNAPSE_EMBEDDED", raising=False)
    definitions = merged_definitions()
    with dg.DagsterInstance.ephemeral() as instance:
        yield Night(ObjectStore(bucket_url, object_store_access), definitions, StackResource(), spec, instance)


def test_the_page_is_red_until_a_backup_is_proven_and_then_says_to_when(night: Night) -> None:
    """The sentence is the materialization's, the check's and the prober's table's."""
    night.tick()
    red = night.check
    backup = store_backup(night.store, NOW - timedelta(minutes=5))
    store_proof(night.store, backup, NOW - timedelta(minutes=4))
    night.cursor = None
    night.tick()

    assert (red.passed, night.check.passed) == (False, True)
    assert (red.description or "").startswith("You cannot restore synapse: there is no backup of it.")
    assert (night.check.description or "").startswith("You can restore synapse to ")
    assert "it takes about 4 s; proven at " in (night.check.description or "")
    assert night.page.description == night.check.description
    window = str(night.page.metadata["window"].value)
    assert window.startswith("![window](<data:image/svg+xml,")
    assert window.count("stroke='green'") == 1  # the proven one
    told = protection(night.spec_path, night.spec_path.parent)["database"]["subjects"]["synapse"]["restore"]
    assert (told["backup_id"], told["objectives_met"]) == (backup.place.backup_id, True)


def test_the_page_is_written_at_each_news_and_every_five_minutes_and_not_else(night: Night) -> None:
    """News: a backup, a proof, a check that turned."""
    start_s = NOW.timestamp()

    def news(event: dg.AssetMaterialization | dg.AssetCheckEvaluation) -> bool:
        night.instance.report_runless_asset_event(event)
        return night.tick(start_s + 1)

    def turned(*, passed: bool) -> dg.AssetCheckEvaluation:
        return dg.AssetCheckEvaluation(
            asset_key=OTHER_CHECK.asset_key, check_name=OTHER_CHECK.name, passed=passed, description="redis is away"
        )

    assert night.tick(start_s)
    assert not night.tick(start_s + 30)
    assert news(dg.AssetMaterialization(DATABASES.backup_key, partition="synapse"))
    assert news(dg.AssetMaterialization(DATABASES.proof_key, partition="synapse"))
    assert news(turned(passed=False))
    assert "redis is away" in night.wrong_now
    assert not news(turned(passed=False))
    assert news(turned(passed=True))
    assert "redis is away" not in night.wrong_now
    assert not night.tick(start_s + 200)
    assert night.tick(start_s + REFRESH_S)


def test_a_good_backup_does_not_keep_a_late_one_green(night: Night) -> None:
    """Freshness is of the whole asset; the age checks name the subject that is late, once, until it is not."""
    night.spec_path.write_text(night.spec_path.read_text() + "database: {databases: [synapse, orders]}\n")
    old = store_backup(night.store, NOW - timedelta(hours=27), database="orders")
    store_proof(night.store, old, NOW - timedelta(hours=26))
    store_backup(night.store, NOW - timedelta(hours=26), database="synapse")
    store_proof(night.store, store_backup(night.store, NOW - timedelta(minutes=5)), NOW)

    night.tick()
    late, proof = (last_evaluation(night.instance, *key) for key in AGE_CHECKS)
    first = len(night.evaluations(*AGE_CHECKS[0]))
    night.tick(NOW.timestamp() + REFRESH_S)

    assert late is not None
    assert not late.passed
    assert (late.description or "").startswith("orders has no backup since ")
    assert "synapse" not in (late.description or "")
    assert proof is not None
    assert proof.passed  # what waited was overtaken by a younger proven one
    assert len(night.evaluations(*AGE_CHECKS[0])) == first == 1


def test_materialize_writes_the_same_page(night: Night) -> None:
    """Whoever does not wait for the sensor clicks the button."""
    job = night.definitions.resolve_implicit_global_asset_job_def()

    run = job.execute_in_process(instance=night.instance, asset_selection=[RECOVERABILITY_KEY])

    assert run.success
    assert not night.check.passed
    assert words_of(night.page, "summary") == (night.check.description or "").split()


def test_no_line_of_the_page_that_says_what_is_wrong_is_cut_off(night: Night) -> None:
    """A page of 1,400 pixels has room for 44 characters beside key and time."""
    says = "redis does not answer: " + "could not connect to redis-7.example.internal:6379, " * 3
    night.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=OTHER_CHECK.asset_key, check_name=OTHER_CHECK.name, passed=False, description=says
        )
    )

    night.tick()

    for name in ("summary", "what_to_do", "wrong_now"):
        value = night.page.metadata[name]
        assert isinstance(value, dg.MarkdownMetadataValue)
        shown = re.sub(r"\(/runbooks/\S+\)", "", value.md_str or "")
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= LINE
    told = " ".join(words_of(night.page, "what_to_do"))
    assert f"- health_report: everything_healthy {says[:70]}" in told
    assert "could not connect to ..." in told  # no word is cut in the middle
    assert summary("much is missed, " * 80) == "much is missed, " * 80  # the UI would hide so much markdown


def test_of_eight_faults_each_has_its_line_and_the_newest_error_is_the_first() -> None:
    """A primary that died is not behind "4 more" because a proof had failed before, nor behind what sums others up."""
    page = {"runbook": dg.MetadataValue.url("/runbooks/probe-failed")}

    def failed(at_s: float, name: str, severity: dg.AssetCheckSeverity) -> tuple[float, dg.AssetCheckEvaluation]:
        key, says = dg.AssetKey(["health", name]), "could not reach PostgreSQL for a probe: connection failed: refused"
        return at_s, dg.AssetCheckEvaluation(
            asset_key=key, check_name="healthy", passed=False, severity=severity, description=says, metadata=page
        )

    error, warning = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
    faults = [*(failed(at_s, f"server-{at_s}", error) for at_s in range(6)), failed(9, "slow", warning)]
    report = dg.AssetKey("health_report")
    sums_up = dg.AssetCheckEvaluation(asset_key=report, check_name=REPORT_CHECK, passed=False, metadata=page)
    faults.append((8, sums_up))
    lines = [line for line in what_to_do(faults).splitlines() if line.startswith("- ")]

    assert [line.partition(":")[0] for line in lines] == [
        *(f"- [health/server-{at_s}" for at_s in range(5, -1, -1)),
        "- [health_report",
        "- [health/slow",
    ]


def words_of(page: dg.AssetMaterialization, name: str) -> list[str]:
    return str(page.metadata[name].value).split()
