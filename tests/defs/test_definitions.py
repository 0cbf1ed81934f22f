"""What Dagster loads: fast, without a heavy client; each asset says whose it is, what it means, when it is late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.policies import POOL_POSTGRES_IO, POOL_REPOSITORY_DELETE, WITHOUT_FRESHNESS
from synapse_ops.domain.runbooks import CHECK_PAGES

HEAVY = [
    "boto3",
    "botocore",
    "kubernetes",
    "qdrant_client",
    "psycopg",
    "psycopg2",
    "fastapi",
    "redis",
    "pyrage",
    "httpx",
]
SPEC = """
name: synapse
time_zone: Europe/Berlin
database: {databases: [orders, "Kunden ä"]}
backup: {redis: {}}
"""


@pytest.fixture
def spec_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec of two databases, where definitions look for it."""
    path = tmp_path / "infrastructure.yaml"
    path.write_text(SPEC)
    monkeypatch.setenv("SYNAPSE_SPEC", str(path))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("SYNAPSE_EMBEDDED", raising=False)
    return path


@pytest.fixture
def defs(spec_path: Path) -> dg.Definitions:
    return merged_definitions()


@pytest.fixture
def embedded_defs(spec_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """What the embedded stack has: all of it."""
    monkeypatch.setenv("SYNAPSE_EMBEDDED", "1")
    return merged_definitions()


def _asset_nodes(defs: dg.Definitions) -> Iterator[dg.AssetSpec]:
    yield from defs.resolve_all_asset_specs()


def _in_new_interpreter(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_loading_imports_no_heavy_client(spec_path: Path) -> None:
    """Each run is a new process that loads the definitions: a client that no asset of it needs costs up to 1 s.

    The module alone imports no package that `import dagster` had not imported.
    """
    code = (
        "import sys, json, dagster as dg; before = set(sys.modules); import synapse_ops.definitions as ours; "
        "added = set(sys.modules) - before; ours.definitions().get_repository_def(); "
        "print(json.dumps([sorted(added), sorted(sys.modules)]))"
    )

    environment = {"SYNAPSE_SPEC": str(spec_path), "SYNAPSE_STATE_DIR": str(spec_path.parent)}
    added, loaded = json.loads(_in_new_interpreter(code, **environment))

    assert {name.partition(".")[0] for name in added} == {"synapse_ops"}
    assert [module for module in HEAVY if module in loaded] == []


def test_a_spec_with_only_a_name_loads(spec_path: Path) -> None:
    """Every field is optional."""
    spec_path.write_text("name: tiny\n")

    dg.Definitions.validate_loadable(merged_definitions())


def test_databases_are_partitioned_by_database_always(defs: dg.Definitions) -> None:
    """Never by time, never by backup id; a single database is a partition too."""
    graph = defs.resolve_asset_graph()
    for name in ("database_dump", "database_restore_proof"):
        partitions = graph.get(dg.AssetKey(name)).partitions_def
        assert partitions is not None
        assert partitions.get_partition_keys() == ["orders", "Kunden ä"]


def test_every_block_is_an_asset_of_its_own(defs: dg.Definitions) -> None:
    """`spec/<block>`: a change of one block leaves the readers of the others alone."""
    keys = {spec.key.to_user_string() for spec in _asset_nodes(defs)}

    assert {"spec/tls", "spec/database", "spec/backup", "spec/retention", "spec/stack"} <= keys
    assert len([key for key in keys if key.startswith("spec/")]) > 20


def test_lineage_runs_from_spec_to_retention(defs: dg.Definitions) -> None:
    """dump -> proof -> plan -> retention, and each reads its blocks of the spec."""
    graph = defs.resolve_asset_graph()

    def parents(name: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert parents("database_retention_set") == {"database_expiry_plan"}
    assert "database_restore_proof" in parents("database_expiry_plan")
    assert "database_dump" in parents("database_restore_proof")
    assert "spec/database" in parents("database_dump")


def test_every_asset_says_whose_it_is_and_what_it_means(embedded_defs: dg.Definitions) -> None:
    """Owner, kind, group and a description: its first sentence has three words or more."""
    for spec in _asset_nodes(embedded_defs):
        assert spec.owners, spec.key
        assert spec.kinds, spec.key
        assert spec.group_name, spec.key
        first, end, _ = (spec.description or "").replace(".\n", ". ").partition(". ")
        assert len(first.split()) >= 3, (spec.key, spec.description)
        assert end or first.endswith("."), (spec.key, spec.description)


def test_every_asset_has_a_clock_or_stands_in_the_list_of_those_without(embedded_defs: dg.Definitions) -> None:
    """A new asset cannot be forgotten: it has a freshness policy, or a reason in WITHOUT_FRESHNESS."""
    without = {spec.key.to_user_string() for spec in _asset_nodes(embedded_defs) if spec.freshness_policy is None}
    named = {"spec/*" if key.startswith("spec/") else key for key in without}

    assert named == set(WITHOUT_FRESHNESS)
    assert all(len(reason) > 20 for reason in WITHOUT_FRESHNESS.values())


def test_work_on_one_resource_excludes_itself(defs: dg.Definitions) -> None:
    """Dumps, proofs and drills share a pool; deletion has its own. Limits are in dagster.yaml."""
    graph = defs.resolve_asset_graph()
    names = ("database_dump", "database_restore_proof", "failover_drill", "recovery_drill")
    pools = {name: graph.get(dg.AssetKey(name)).pools for name in names}

    assert pools == {name: {POOL_POSTGRES_IO} for name in names}
    for job in ("expire", "expire_apply"):
        assert {node.definition.pool for node in defs.resolve_job_def(job).nodes} == {POOL_REPOSITORY_DELETE}  # type: ignore[union-attr]


def test_materialize_all_removes_nothing(defs: dg.Definitions) -> None:
    """What takes a digest is a job: its asset cannot be materialized, and so "Materialize all" ends green."""
    graph = defs.resolve_asset_graph()
    removes = {key for key in graph.get_all_asset_keys() if key.path[-1].endswith(("_retention_set", "_cleanup"))}

    assert len(removes) == 9
    assert not any(graph.get(key).is_executable for key in removes)


def test_every_job_ends_and_none_is_retried(defs: dg.Definitions) -> None:
    """A hung run would hold its pool for ever; a retry of something that deletes is never the framework's."""
    repository = defs.get_repository_def()
    for job in repository.get_all_jobs():
        if not job.name.startswith("__"):
            assert int(job.tags["dagster/max_runtime"]) > 0, job.name
            assert "dagster/max_retries" not in job.tags, job.name
            assert all(node.definition.retry_policy is None for node in job.nodes), job.name  # type: ignore[union-attr]


def test_jobs_begin_with_their_verb_and_every_kind_has_the_same(defs: dg.Definitions) -> None:
    """One pattern of names and descriptions, and no kind with less than the others."""
    repository = defs.get_repository_def()
    jobs = {job.name: str(job.description) for job in repository.get_all_jobs() if not job.name.startswith("__")}
    verbs = {name.partition("_")[0] for name in jobs}
    of_kind = {
        word: {
            *(name.removesuffix(f"_{word}") for name in jobs if name.endswith(f"_{word}")),
            *(one.name.removeprefix(prefix) for one in repository.schedule_defs if one.name.startswith(f"{prefix}_")),
            *(one.name.removeprefix(prefix) for one in repository.sensor_defs if one.name.startswith(f"{prefix}_")),
        }
        for word, prefix in (
            ("database", "database"),
            ("vectors", "vector"),
            ("redis", "redis"),
            ("cluster", "cluster"),
        )
    }

    known = {
        "backup",
        "prove",
        "restore",
        "recover",
        "expire",
        "cleanup",
        "record",
        "render",
        "report",
        "forget",
        "drill",
    }
    assert verbs <= known
    assert len(jobs) == 24, sorted(jobs)
    assert all(text.endswith(".") and len(text.split()) > 5 for text in jobs.values()), jobs
    assert of_kind["redis"] == of_kind["vectors"] == of_kind["database"] == of_kind["cluster"]
    assert of_kind["redis"] == {"backup", "prove", "_backup_schedule", "_proof_schedule", "_repository_sensor"}


def test_launchpad_refuses_a_choice_that_is_none(defs: dg.Definitions) -> None:
    """A wrong word is refused before a run starts, with the words that are right."""
    wrong = {
        "report_availability": ("availability_report", {"month": "November"}),
        "expire_apply": ("apply_expiry", {"kind": "collections", "plan_digest": "0" * 16}),
        "cleanup_apply": ("apply_cleanup", {"kind": "log", "plan_digest": "0" * 16}),
    }
    for job, (op, config) in wrong.items():
        with pytest.raises(dg.DagsterInvalidConfigError, match="not in enum type"):
            dg.validate_run_config(defs.resolve_job_def(job), {"ops": {op: {"config": config}}})
    last_month = {"ops": {"availability_report": {"config": {"month": "last"}}}}
    assert dg.validate_run_config(defs.resolve_job_def("report_availability"), last_month)


def test_every_check_links_to_its_runbook(embedded_defs: dg.Definitions) -> None:
    """Whoever is woken by it needs no search: the page exists, and the guarded webserver serves it."""
    specs = [spec for one in _with_checks(embedded_defs) for spec in one.check_specs]
    pages = {spec.name: spec.metadata["runbook"] for spec in specs}

    assert {spec.name for spec in specs} == set(CHECK_PAGES)
    folder = Path(__file__).parents[2] / "docs" / "runbooks"
    for name, link in pages.items():
        assert isinstance(link, dg.UrlMetadataValue), name
        assert (folder / f"{str(link.url).removeprefix('/runbooks/')}.md").is_file(), name


def _with_checks(defs: dg.Definitions) -> list[dg.AssetsDefinition]:
    made = (*(defs.assets or ()), *(defs.asset_checks or ()))
    return [one for one in made if isinstance(one, dg.AssetsDefinition)]


@pytest.mark.parametrize("name", ["prove_database", "restore", "expire_apply", "cleanup_apply"])
def test_every_field_of_the_launchpad_is_described(defs: dg.Definitions, name: str) -> None:
    """An operator reads in the launchpad what a field means."""
    fields = defs.resolve_job_def(name).nodes[0].definition.config_field.config_type.fields  # type: ignore[union-attr]

    assert fields
    assert all(len(field.description or "") > 20 for field in fields.values())


def test_sensors_hand_their_events_to_the_daemon() -> None:
    """It records them with the cursor: a tick that reported by itself and then died would report again."""
    defs = Path(__file__).parents[2] / "synapse_ops" / "defs"
    users = {path.relative_to(defs).as_posix() for path in defs.rglob("*.py") if "report_runless" in path.read_text()}

    assert users == {"backup/verbs.py"}  # in the run of a proof


def test_private_dagster_modules_are_imported_in_few_places() -> None:
    """They move between versions: few modules name them, and each still exists."""
    package = Path(__file__).parents[2] / "synapse_ops"
    users = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "dagster._" in path.read_text()}

    assert users <= {
        "systems/dagster_storage.py",
        "services/dagster/service.py",  # starts the daemon by name
        "services/dagster/run_launcher.py",  # classes that dagster.yaml names
        "services/dagster/compute_logs.py",
    }


@pytest.mark.parametrize("failover", ["standby: null", "manager: external"])
def test_nothing_of_a_failover_is_shown_where_there_is_none_of_ours(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, failover: str
) -> None:
    """No record, sensor or check that would be red for ever; and no page of a standby that is not there."""
    spec_path.write_text(f"{SPEC}failover: {{{failover}}}\n")
    monkeypatch.setenv("SYNAPSE_EMBEDDED", "1")

    found = merged_definitions()

    graph = found.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert not [name for name in keys if "failover_record" in name or name == "health/server/failover"]
    assert not [key for key in graph.asset_check_keys if "failover" in key.name]
    assert not [sensor for sensor in found.sensors or () if "failover" in sensor.name]
    pairs = {"health/server/db-standby", "health/server/replication"}
    assert keys & pairs == (pairs if failover == "manager: external" else set())
