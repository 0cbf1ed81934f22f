"""A spec that remembers which of its top-level fields were asked for."""

from __future__ import annotations

from typing import Any

from synapse_ops.spec import Spec


class RecordingSpec:
    """Stands in for a Spec: `touched` names every field that was read through it."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.touched: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in type(self._spec).model_fields:
            self.touched.add(name)
        return getattr(self._spec, name)
