"""Every rendered document as an asset: what it is, which blocks of the spec it reads, what changed in it and why.

    spec/<block>  ->  the documents that read it  ->  manifest_release

The data version of a document is the digest of its bytes: a block that changed without an effect on the bytes makes no
release. Automation renders what reads a changed block, or whose renderer changed, and nothing else.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import (
    GROUP_MANIFESTS,
    LANE_REPORT,
    OWNERS,
    TAG_TRIGGER,
    code_version,
    code_version_of,
    run_tags,
)
from synapse_ops.defs.release.checks import RELEASE_KEY, document_checks, manifest_check, manifest_result
from synapse_ops.defs.release.events import document_metadata, last_rendering, release_metadata, stale_pages
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key
from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.manifests.targets import TARGETS, Target

if TYPE_CHECKING:
    from synapse_ops.operations.release.render import Judged
    from synapse_ops.operations.stack import Stack

RENDERERS = "synapse_ops.manifests"
RENDER_LIMIT = timedelta(minutes=10)
AUTOMATION_INTERVAL_S = 60

_KINDS = {
    "dockerfile": "docker",
    "compose_file": "docker",
    "kubernetes_manifests": "kubernetes",
    "postgres_config": "postgres",
    "redis_config": "redis",
    "qdrant_config": "qdrant",
    "prometheus_config": "prometheus",
    "alert_rules": "prometheus",
    "alertmanager_config": "prometheus",
    "grafana_dashboards": "grafana",
    "index_template": "elasticsearch",
}


def manifest_definitions() -> dg.Definitions:
    """Return the assets, their checks, the job that renders all of them, and the sensor that renders what changed."""
    selection = dg.AssetSelection.groups(GROUP_MANIFESTS)
    render_manifests = dg.define_asset_job(
        "render_manifests",
        selection=selection,
        description="Render every document, judge them, and keep them as a release.",
        tags=run_tags(RENDER_LIMIT, lane=LANE_REPORT),
    )
    automation = dg.AutomationConditionSensorDefinition(
        "manifest_automation",
        target=selection,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=AUTOMATION_INTERVAL_S,
        run_tags={TAG_TRIGGER: "automation", **run_tags(RENDER_LIMIT, lane=LANE_REPORT)},
        description="Renders exactly the documents that read a block of the spec which changed, or whose renderer "
        "changed; then makes the release, when bytes changed.",
    )
    return dg.Definitions(
        assets=[*(_document_asset(target) for target in TARGETS), _release_asset()],
        asset_checks=[document_checks([target.name for target in TARGETS])],
        jobs=[render_manifests],
        sensors=[automation],
    )


def when_documents_change() -> dg.AutomationCondition:  # type: ignore[type-arg]
    """Return the condition of the release: as of a document, and no block that a document reads is being recorded.

    The blocks of a spec are recorded one after another in one run. A look in the midst of it would release the former
    documents with the new `manifests` block, or fail because their pages show other bytes.
    """
    recording = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.any_deps_in_progress())
    return (when_inputs_change() & ~recording).with_label("a document changed")


def when_inputs_change() -> dg.AutomationCondition:  # type: ignore[type-arg]
    """Return the condition: never made, or an input's data version or the code changed, once all inputs are there.

    What was requested or made since is not requested again: a rendering that fails waits for its cause to change.
    """
    changed = (
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
        | dg.AutomationCondition.code_version_changed()
        | dg.AutomationCondition.missing().newly_true()
    )
    handled = dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated()
    is_free = ~dg.AutomationCondition.any_deps_missing() & ~dg.AutomationCondition.any_deps_in_progress()
    wanted = changed.since(handled) & is_free & ~dg.AutomationCondition.in_progress()
    return wanted.with_label("an input changed")


def _document_asset(target: Target) -> dg.AssetsDefinition:
    version = code_version_of(target.module, RENDERERS)

    @dg.asset(
        name=target.name,
        deps=sorted({spec_key(block) for block in target.reads}),
        group_name=GROUP_MANIFESTS,
        owners=OWNERS,
        kinds={_KINDS.get(target.name, "file")},
        code_version=version,
        automation_condition=when_inputs_change(),
        description=f"{target.description} `diff` is against the last rendering, `because` names the fields of the "
        "spec that changed since.",
    )
    def document(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        from synapse_ops.manifests.bundle import bundle_of

        with operation_of(context.run.run_id, context.instance):
            opened = stack.open()
            made = bundle_of(target.render(opened.spec))
            former = last_rendering(context.instance, context.asset_key)
            metadata = document_metadata(made, target.reads, opened, former, code_version=version)
            return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(made.digest))

    return document


def _release_asset() -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        RELEASE_KEY,
        deps=[*(dg.AssetKey(target.name) for target in TARGETS), spec_key("manifests"), spec_key("object_store")],
        group_name=GROUP_MANIFESTS,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.operations.release.store", "synapse_ops.manifests.bundle"),
        automation_condition=when_documents_change(),
        description="All documents under one digest, in manifests.destination and on this host, release.json last. "
        "Refused while a consistency rule finds an error, and while a document's page shows other bytes than these.",
    )

    @dg.multi_asset(name="manifest_release", specs=[spec], check_specs=[manifest_check(RELEASE_KEY)], can_subset=True)
    def manifest_release(
        context: dg.AssetExecutionContext, stack: StackResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        """The checks run in the asset and not after it: the checks of a refused release are the ones that matter."""
        from synapse_ops.operations.release.render import judge

        with operation_of(context.run.run_id, context.instance):
            opened = stack.open()
            judged = judge(opened.spec)
            results = [manifest_result(RELEASE_KEY, judged)] if context.selected_asset_check_keys else []
            if RELEASE_KEY in context.selected_asset_keys:
                try:
                    made = _released(opened, judged, context.instance)
                except SynapseOpsError:
                    yield from results
                    raise
                yield made
            yield from results

    return manifest_release


def _released(stack: "Stack", judged: "Judged", instance: dg.DagsterInstance) -> dg.MaterializeResult[None]:
    """Make the release, when it holds what the documents' pages show. Raises Refused when not."""
    from synapse_ops.operations.release.render import accept
    from synapse_ops.operations.release.store import make_release

    bundle = accept(judged).bundle
    stale = stale_pages({name: made.digest for name, made in judged.by_target.items()}, instance)
    if stale:
        raise Refused(
            f"cannot release {bundle.digest[:12]}: {len(stale)} documents' pages show other bytes",
            detail=f"materialise first: {', '.join(stale)}",
            hint="The job render_manifests renders every document and then makes the release.",
        )
    metadata = release_metadata(make_release(stack, bundle), last_rendering(instance, RELEASE_KEY))
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(bundle.digest))
