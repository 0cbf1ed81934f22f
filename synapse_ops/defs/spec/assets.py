"""`spec/<block>`: what the operator wrote, one asset a block, so that a change of `tls` makes only its readers stale.

The data version of a block is the digest of its effective values: comments, order and spelling (60s, 1m) do not count.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, get_args

import dagster as dg

from synapse_ops.defs.place import Place
from synapse_ops.defs.policies import GROUP_SPEC, LANE_REPORT, OWNERS, code_version, run_tags
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from synapse_ops.spec import LoadedSpec

FILE_KEY = dg.AssetKey("infrastructure_file")
RECORD_LIMIT = timedelta(minutes=5)
CHECK_NAME = "spec_loaded_equals_file"

# top-level values outside of any block: `spec/stack` holds them together
_SCALARS = ("name", "time_zone", "health_base_url")
_STACK_BLOCK = "stack"
_STACK_DESCRIPTION = "Name, time zone and base address of the stack."


def spec_key(block: str) -> dg.AssetKey:
    """Return the key of a block; top-level scalars are in `spec/stack`."""
    return dg.AssetKey(["spec", _STACK_BLOCK if block in _SCALARS else block])


def spec_definitions(place: Place, loaded: "LoadedSpec") -> dg.Definitions:
    """Return the assets of every block, the file that they come from, and the check that the two agree."""
    fields = type(loaded.spec).model_fields
    blocks = [_STACK_BLOCK, *(name for name in fields if name not in _SCALARS)]
    loaded_digest = loaded.digest
    specs = [
        dg.AssetSpec(
            spec_key(block),
            deps=[FILE_KEY],
            description=_description_of(block, fields),
            group_name=GROUP_SPEC,
            owners=OWNERS,
            kinds={"yaml"},
            code_version=code_version("synapse_ops.spec.document"),
        )
        for block in blocks
    ]

    @dg.multi_asset(specs=specs, can_subset=True, name="spec_blocks")
    def spec_blocks(context: dg.AssetExecutionContext, stack: StackResource) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        now = stack.open().loaded
        for block in blocks:
            if spec_key(block) in context.selected_asset_keys:
                names = _SCALARS if block == _STACK_BLOCK else (block,)
                yield dg.MaterializeResult(
                    asset_key=spec_key(block),
                    data_version=dg.DataVersion(_version_of(names, now)),
                    metadata=_metadata_of(names, now),
                )

    file = dg.AssetSpec(
        FILE_KEY,
        description="The spec file as the operator saves it. In force may be an older, valid one: see its check.",
        group_name=GROUP_SPEC,
        owners=OWNERS,
        kinds={"yaml", "file"},
        metadata={"path": dg.MetadataValue.path(str(place.spec_path))},
    )

    @dg.asset_check(
        asset=FILE_KEY,
        name=CHECK_NAME,
        metadata=runbook_of_check(CHECK_NAME),
        description="Red while the file is not valid, or differs from what is loaded. The last valid spec "
        "stays in force meanwhile; the code server restarts by itself when a new valid one appears.",
    )
    def spec_loaded_equals_file() -> dg.AssetCheckResult:
        return evaluate_file(place, loaded_digest)

    record_spec = dg.define_asset_job(
        "record_spec",
        selection=dg.AssetSelection.groups(GROUP_SPEC),
        description="Record the spec in force: one data version a block.",
        tags=run_tags(RECORD_LIMIT, lane=LANE_REPORT),
    )
    return dg.Definitions(assets=[file, spec_blocks], asset_checks=[spec_loaded_equals_file], jobs=[record_spec])


def evaluate_file(place: Place, loaded_digest: str) -> dg.AssetCheckResult:
    """Return the check's verdict: does the file mean what is loaded?"""
    from synapse_ops.operations.spec_in_force import compare_with_file

    difference = compare_with_file(place.spec_path, loaded_digest)
    return dg.AssetCheckResult(
        asset_key=FILE_KEY,
        check_name=CHECK_NAME,
        passed=not difference,
        description=difference or "The file is what is loaded.",
        metadata={
            "loaded_digest": loaded_digest,
            "path": dg.MetadataValue.path(str(place.spec_path)),
            **runbook_of_check(CHECK_NAME),
        },
    )


def _description_of(block: str, fields: Mapping[str, "FieldInfo"]) -> str:
    """Return what the spec says of a block: the field's own description, else its model's first line."""
    if block not in fields:
        return _STACK_DESCRIPTION
    annotation = fields[block].annotation
    model = next(iter(get_args(annotation)), annotation)  # of `Block | None`, whose own docstring is Python's
    of_model = (model.__doc__ or "").strip().partition("\n")[0]
    return fields[block].description or of_model or f"The block `{block}` of the spec."


def _version_of(names: Sequence[str], loaded: "LoadedSpec") -> str:
    """Return the digest of the values of these top-level names."""
    joined = "".join(loaded.block_digests[name] for name in names)
    return loaded.block_digests[names[0]] if len(names) == 1 else hashlib.sha256(joined.encode("ascii")).hexdigest()


def _metadata_of(names: Sequence[str], loaded: "LoadedSpec") -> Mapping[str, dg.MetadataValue]:
    """Return a block's effective values (secrets are references and stay so) and what of it has no effect."""
    document = loaded.spec.model_dump(mode="json", include=set(names))
    values = document if len(names) > 1 else {names[0]: document[names[0]]}
    is_ours = tuple(f"{name}." for name in names)
    ignored = {path: why for path, why in loaded.ignored.items() if path in names or path.startswith(is_ours)}
    return {
        "values": dg.MetadataValue.json(values),
        "written_fields": dg.MetadataValue.int(
            sum(path in names or path.startswith(is_ours) for path in loaded.origins)
        ),
        **({"ignored": dg.MetadataValue.json(ignored)} if ignored else {}),
    }
