"""A moment is what a person wrote, or one clear line about it."""

from __future__ import annotations

import pytest

from synapse_ops.domain.database.recovery_target import RecoveryTarget
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
