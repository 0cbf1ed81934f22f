"""A moment is what a person wrote, or one clear line about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.recovery_target import RecoveryTarget, proof_target
from synapse_ops.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    ["latest", "immediate", "time:2026-11-30T08:15:00+00:00", "lsn:0/5012DD0", "name:before_import", "xid:771"],
)
def test_every_form_is_read_as_it_is_shown(text: str) -> None:
    assert str(RecoveryTarget.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time:yesterday", '"yesterday" is not a time of the form'),
        ("time:2026-11-30T08:15:00", "no offset"),
        ("lsn:12", "is not a WAL position"),
        ("xid:abc", 'cannot restore until "xid:abc"'),
        ("latest:1", 'cannot restore until "latest:1"'),
        ("name:", 'cannot restore until "name:"'),
    ],
)
def test_what_is_no_moment_is_refused_with_the_forms_that_are(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RecoveryTarget.parse(text)

    assert said in refused.value.message
    assert "time:2026-11-30T08:15:00Z" in refused.value.detail


def test_proofs_take_turns_and_look_at_both_sides_of_the_newest_promotion() -> None:
    """What a failover does to the archive is tried by itself, as long as a base backup before it is proven."""
    first = datetime(2026, 11, 30, tzinfo=UTC)
    last, promoted_at = first + timedelta(hours=8), first + timedelta(hours=2)
    before, seen = "", []
    for _ in range(5):
        before = str(proof_target(before, first=first, last=last, fork=Lsn(0x5012DD0), promoted_at=promoted_at))
        seen.append(before)
    moment = "time:2026-11-30T04:00:00+00:00"
    assert seen == ["latest", "lsn:0/5012DD0", "time:2026-11-30T02:00:00+00:00", moment, "latest"]

    assert str(proof_target("latest", first=first, last=last)) == moment
    assert str(proof_target("lsn:0/5012DD0", first=first, last=last)) == "latest"  # of an older promotion
    assert str(proof_target("latest", first=first, last=None, fork=Lsn(1))) == "latest"
