"""A change of the spec renders exactly what reads the changed block, and says which lines changed and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.policies import MANIFESTS, code_version_of
from synapse_ops.manifests.bundle import bundle_of
from synapse_ops.manifests.targets import TARGETS
from synapse_ops.operations.stack import open_stack
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

SPEC = """
name: synapse
object_store: {{endpoint: "{endpoint}"}}
manifests: {{destination: "{destination}{below}"}}
firewall: {{inbound: [{{port: {port}, source: 0.0.0.0/0}}]}}
redis: {{max_connections: {connections}}}
"""


@dataclass
class Site:
    """A spec that definitions find, a store, and an instance of its own; `tick` is one look of the automation."""

    folder: Path
    endpoint: str
    destination: str
    instance: dg.DagsterInstance
    cursor: object = None

    def write(self, *, port: int = 443, connections: int = 10, below: str = "") -> None:
        self.path.write_text(
            SPEC.format(
                endpoint=self.endpoint,
                destination=self.destination,
                port=port,
                connections=connections,
                below=below,
            )
        )

    @property
    def path(self) -> Path:
        return self.folder / "infrastructure.yaml"

    def run(self, job: str, *, selection: list[str] | None = None, expect: bool = True) -> dg.ExecuteInProcessResult:
        keys = [dg.AssetKey(name.split("/")) for name in selection] if selection is not None else None
        found = merged_definitions().resolve_job_def(job)
        result = found.execute_in_process(instance=self.instance, asset_selection=keys, raise_on_error=False)
        assert result.success is expect
        return result

    def tick(self) -> set[str]:
        """Return what the automation requests now."""
        found = dg.evaluate_automation_conditions(
            defs=merged_definitions(),
            instance=self.instance,
            asset_selection=dg.AssetSelection.groups("manifests"),
            cursor=self.cursor,  # type: ignore[arg-type]
            evaluation_time=datetime.now(UTC),
        )
        self.cursor = found.cursor
        names = {name for name in MANIFESTS if found.get_num_requested(dg.AssetKey(name))}
        assert found.total_requested == len(names)
        return names

    def evaluations(self, result: dg.ExecuteInProcessResult) -> dict[str, list[dg.AssetCheckEvaluation]]:
        found: dict[str, list[dg.AssetCheckEvaluation]] = {}
        for row in result.get_asset_check_evaluations():
            found.setdefault(row.asset_key.to_user_string(), []).append(row)
        return found

    def metadata(self, asset: str) -> dict[str, object]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store_access: StoreAccess, bucket_url: str
) -> Iterator[Site]:
    monkeypatch.setenv("SYNAPSE_SPEC", str(tmp_path / "infrastructure.yaml"))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store_access.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store_access.secret_key)
    with dg.DagsterInstance.ephemeral() as instance:
        found = Site(tmp_path, object_store_access.endpoint or "", f"{bucket_url}releases/", instance)
        found.write()
        yield found


def test_each_document_depends_on_exactly_the_blocks_that_it_reads(site: Site) -> None:
    """An asset's parents are its documents' reads; the release's are all documents and where it is kept."""
    graph = merged_definitions().resolve_asset_graph()
    spec = open_stack(site.path, site.folder).spec

    for target in TARGETS:
        read = {block for document in target.render(spec) for block in document.reads}
        blocks = {"stack" if block in ("name", "time_zone", "health_base_url") else block for block in read}
        parents = {key.to_user_string() for key in graph.get(dg.AssetKey(target.name)).parent_keys}
        assert parents == {f"spec/{block}" for block in blocks}, target.name
    of_release = {key.to_user_string() for key in graph.get(dg.AssetKey("manifest_release")).parent_keys}
    assert of_release == {target.name for target in TARGETS} | {"spec/manifests", "spec/object_store"}


@pytest.mark.scenario
def test_change_of_one_block_requests_exactly_its_readers_and_then_the_release(site: Site) -> None:
    """Nothing unchanged is rendered again: not on the next tick, nor when equal blocks are recorded."""
    site.run("record_spec")
    assert site.tick() == set(MANIFESTS)
    site.run("render_manifests")
    assert site.tick() == set()
    site.run("record_spec")
    assert site.tick() == set()

    site.write(port=8443)
    site.run("record_spec")

    readers = {target.name for target in TARGETS if "firewall" in target.reads}
    assert readers
    assert len(readers) < len(TARGETS)
    assert site.tick() == readers
    assert site.tick() == set()
    site.run("render_manifests", selection=sorted(readers))
    assert site.tick() == {"manifest_release"}
    site.run("render_manifests", selection=["manifest_release"])
    assert site.tick() == set()


@pytest.mark.scenario
def test_no_release_is_requested_while_a_spec_is_being_recorded(site: Site) -> None:
    """Half of a new spec would be released with documents of the former one."""
    site.run("record_spec")
    site.tick()
    site.run("render_manifests")
    assert site.tick() == set()
    site.write(port=8443, below="elsewhere/")
    recording = merged_definitions().resolve_job_def("record_spec")
    site.run("record_spec", selection=["spec/manifests"])
    half = site.instance.create_run_for_job(
        recording, asset_selection=frozenset({dg.AssetKey(["spec", "firewall"])}), status=dg.DagsterRunStatus.STARTED
    )

    assert "manifest_release" not in site.tick()

    site.instance.report_run_canceled(half)
    site.run("record_spec")
    assert {"firewall_rules", "manifest_release"} <= site.tick()


@pytest.mark.scenario
def test_changed_renderer_requests_exactly_its_documents(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code version covers a renderer and all that it imports from the package; the page names the renderer."""
    site.run("record_spec")
    site.tick()
    site.run("render_manifests")
    assert site.tick() == set()

    def changed(module: str, package: str) -> str:
        return "another" if module.endswith(".redis_and_qdrant") else code_version_of(module, package)

    monkeypatch.setattr("synapse_ops.defs.release.assets.code_version_of", changed)

    assert site.tick() == {"redis_config", "qdrant_config"}
    site.run("render_manifests", selection=["redis_config", "qdrant_config"])
    assert "the renderer" in str(site.metadata("redis_config")["because"])
    assert site.tick() == set()


@pytest.mark.scenario
def test_page_of_a_changed_document_shows_which_lines_and_why(site: Site) -> None:
    """The difference to the last rendering, the field with both values, and a preview."""
    site.run("render_manifests")
    assert site.metadata("firewall_rules")["because"] == "the first rendering"

    site.write(port=8443)
    site.run("render_manifests")

    changed, equal = site.metadata("firewall_rules"), site.metadata("redis_config")
    assert "`firewall.inbound`" in str(changed["because"])
    assert '"port": 443' in str(changed["because"]).split("→")[0]
    assert "8443" in str(changed["diff"])
    assert changed["added_lines"]
    assert "table" in str(changed["preview"])
    assert (equal["diff"], equal["changed_documents"]) == ("equal to the last rendering", 0)
    of_release = site.metadata("manifest_release")["changed"]
    assert "firewall/nftables.conf" in str(of_release)
    assert "redis" not in str(of_release)


@pytest.mark.scenario
def test_block_whose_change_leaves_the_bytes_makes_no_release(site: Site) -> None:
    """The data version is that of the bytes: rendering again is cheap, a release says that something changed."""
    site.run("record_spec")
    site.tick()
    site.run("render_manifests")
    site.tick()

    site.run("render_manifests", selection=["dockerfile"])

    assert site.tick() == set()


def test_release_holds_what_the_documents_pages_show(site: Site, object_store_access: StoreAccess) -> None:
    """Its digest is that of the whole bundle, and every document lies below it."""
    site.run("render_manifests")

    spec = open_stack(site.path, site.folder).spec
    bundle = bundle_of(tuple(document for target in TARGETS for document in target.render(spec)))
    assert site.metadata("manifest_release")["digest"] == bundle.digest
    store = ObjectStore(site.destination, object_store_access)
    assert store.head(f"{bundle.digest}/release.json") is not None
    assert (site.folder / "state" / "releases" / bundle.digest / "docker" / "Dockerfile").is_file()


def test_release_of_other_bytes_than_the_pages_show_is_refused(site: Site, object_store_access: StoreAccess) -> None:
    """Somebody who materialises the release alone after a change is told which document to render first. The refused
    release shows its checks, and nothing of it is written.
    """
    site.run("render_manifests")
    before = [found.key for found in ObjectStore(site.destination, object_store_access).list_objects()]
    site.write(port=8443)

    result = site.run("render_manifests", selection=["manifest_release"], expect=False)

    [failure] = result.get_step_failure_events()
    assert "firewall_rules" in str(failure.step_failure_data.error)
    assert "redis_config" not in str(failure.step_failure_data.error)
    checks = {row.check_name: row.passed for row in site.evaluations(result)["manifest_release"]}
    assert checks == {"consistent": True}
    assert [found.key for found in ObjectStore(site.destination, object_store_access).list_objects()] == before


def test_checks_of_the_release_are_evaluated_without_making_it(site: Site) -> None:
    """Somebody who wants to know what stands in its way asks for the checks alone."""
    site.run("render_manifests")
    before = site.metadata("manifest_release")
    site.write(port=8443)

    job = merged_definitions().resolve_job_def("render_manifests")
    keys = {dg.AssetCheckKey(dg.AssetKey("manifest_release"), "consistent")}
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
        instance=site.instance
    )

    assert [row.check_name for row in site.evaluations(result)["manifest_release"]] == ["consistent"]
    assert site.metadata("manifest_release") == before


def test_every_document_is_checked_and_so_is_the_release(site: Site) -> None:
    """No rule finds an error in the documents of a spec that loads."""
    result = site.run("render_manifests")

    found = {(row.asset_key.to_user_string(), row.check_name): row for row in result.get_asset_check_evaluations()}
    assert set(found) == {(name, "consistent") for name in MANIFESTS}
    for (name, check), row in found.items():
        assert row.passed, (name, check, row.description)


def test_the_automation_sensor_is_explicit_and_running() -> None:
    """Dagster's own implicit one would be stopped, and a stopped one renders nothing."""
    from synapse_ops.defs.release.assets import manifest_definitions

    sensor = next(found for found in manifest_definitions().sensors or () if found.name == "manifest_automation")
    assert isinstance(sensor, dg.AutomationConditionSensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
