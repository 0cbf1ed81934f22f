"""A plan of a cleanup on this host: what one application did is said, also when it fails."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from synapse_ops.errors import LeaseLost
from synapse_ops.operations.cleanup.plan_file import apply_plan, write_plan

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_an_application_that_fails_says_what_it_did_before_and_may_be_repeated(tmp_path: Path) -> None:
    """The outcome is lost with the error, so the error carries it."""
    with write_plan(tmp_path, "snapshots", {"grace": 3600}, NOW) as draft:
        draft.writer.add({"action": "delete", "subject": "one"}, acts=True)

    def apply_and_fail() -> None:
        with apply_plan(tmp_path, "snapshots", draft.plan.digest, NOW) as (_, outcome):
            outcome.did("delete", 10)
            outcome.did("delete", 32)
            raise LeaseLost("the lease is gone", detail="it could not be renewed")

    with pytest.raises(LeaseLost) as lost:
        apply_and_fail()

    assert lost.value.detail.splitlines() == [
        "it could not be renewed",
        "done before that: delete 2 times",
        "freed before that: 42 bytes",
    ]
    with apply_plan(tmp_path, "snapshots", draft.plan.digest, NOW) as (plan, _):
        assert [entry["subject"] for entry in plan.entries()] == ["one"]
