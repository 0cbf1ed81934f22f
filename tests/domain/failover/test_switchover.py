"""What stands against a switchover, each with its values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synapse_ops.domain.failover.switchover import LongSession, Readiness, plan_switchover

READY = Readiness(
    takes_writes=True, follows=True, timelines=(3, 3), receiver="streaming", lag_bytes=1000, long_sessions=()
)
REPORT = LongSession("db-primary", "transaction", 4711, "ada", "report", 95.2)


@pytest.mark.parametrize(
    ("found", "against"),
    [
        (READY, []),
        (replace(READY, takes_writes=False), ["the primary takes no writes"]),
        (replace(READY, follows=False, receiver=""), ["the standby is not in recovery"]),
        (replace(READY, receiver=""), ['the standby does not stream: its WAL receiver is "not there"']),
        (replace(READY, lag_bytes=1001), ["the standby is 1001 bytes behind, limit 1000 (failover.max_lag_bytes)"]),
        (
            replace(READY, lag_bytes=None),
            ["the standby is an unknown number of bytes behind, limit 1000 (failover.max_lag_bytes)"],
        ),
        (replace(READY, timelines=(4, 3)), ["the last checkpoints are on timelines 4 and 3"]),
        (
            replace(READY, receiver="", long_sessions=(REPORT,)),
            [
                'the standby does not stream: its WAL receiver is "not there"',
                (
                    'it would end the transaction of pid 4711 on db-primary (ada, "report"), 95 s old: '
                    "`synapse-ops switchover --end-sessions` ends them"
                ),
            ],
        ),
    ],
)
def test_each_objection_names_its_values(found: Readiness, against: list[str]) -> None:
    assert list(plan_switchover(found, 1000, end_sessions=False)) == against


def test_long_sessions_are_no_objection_once_a_person_accepts_it() -> None:
    assert plan_switchover(replace(READY, long_sessions=(REPORT,)), 1000, end_sessions=True) == ()
