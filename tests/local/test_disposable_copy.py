"""The spec of a drill's copy: the operator's rules of failover, and valid for whatever they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synapse_ops.local.disposable_copy import spec_of_copy
from synapse_ops.spec import load_spec

LONG = "s" + "ynapse-" * 7 + "x"


@pytest.mark.parametrize(
    "text",
    [
        "name: synapse\n",
        f"name: {LONG}\n",
        "failover: {synchronous: standby, max_lag_bytes: 4Mi}\n",
        "failover: {timeout: 2h, primary_start_timeout: 90m}\nobjectives: {rto: 3h}\n",
        "failover: {timeout: 500ms}\nobjectives: {rto: 1s}\n",
        "failover: {automatic: false, primary: a, standby: b, cool_down: 1h, max_per_hour: 1}\n",
    ],
)
def test_the_spec_of_a_copy_is_valid_and_has_the_rules_of_the_operator(text: str, tmp_path: Path) -> None:
    """A prober that refuses its spec would be silent, and the drill would wait for nothing."""
    own, made = tmp_path / "own.yaml", tmp_path / "copy.yaml"
    own.write_text(text)
    rules = load_spec(own).spec.failover
    made.write_text(json.dumps(spec_of_copy(load_spec(own).spec)))

    copied = load_spec(made).spec.failover

    for name in ("timeout", "primary_start_timeout", "max_lag_bytes", "synchronous"):
        assert getattr(copied, name) == getattr(rules, name)
    assert copied.is_ours
    assert (copied.automatic, copied.nodes) == (True, ("db-primary", "db-standby"))
