"""Thin."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from synapse_ops.errors import ConfigError
from synapse_ops.spec.document import Spec
from synapse_ops.spec.loaded import LoadedSpec, digests_of


def _tuples(value: object) -> object:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def load_spec(path: Path) -> LoadedSpec:
    """Return the valid spec at `path`; raises ConfigError that lists every fault."""
    from ruamel.yaml import YAML

    try:
        document = YAML(typ="safe", pure=True).load(path) or {}
        spec = Spec.model_validate(_tuples(document))
    except FileNotFoundError as fault:
        raise ConfigError(f'spec file "{path}" does not exist') from fault
    except ValidationError as faults:
        detail = "\n".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in faults.errors())
        raise ConfigError(f'spec "{path}" has {faults.error_count()} faults', detail=detail) from None
    digest, blocks = digests_of(spec)
    return LoadedSpec(spec=spec, path=path, digest=digest, block_digests=blocks, origins={}, ignored={})
