"""What Alertmanager's webhook tells, read and remembered."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from synapse_ops.domain.health.alerts import FORGET_AFTER, ActiveAlert, after_notification, parse_notification

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def alert(fingerprint: str = "c0ffee", status: str = "firing", since: str = "2026-11-24T10:00:00Z") -> dict[str, Any]:
    labels = {"alertname": "primary_down", "severity": "critical", "action": "failover"}
    return {"status": status, "labels": labels, "startsAt": since, "fingerprint": fingerprint}


def notification(*alerts: Any) -> bytes:
    return json.dumps({"version": "4", "alerts": alerts}).encode()


def after(active: tuple[ActiveAlert, ...], *alerts: Any, now: datetime = NOW) -> tuple[ActiveAlert, ...]:
    return after_notification(active, parse_notification(notification(*alerts), now), now)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "pending"},
        {"labels": None},
        {"labels": {"severity": "critical"}},
        {"labels": {"alertname": 7}},
        {"annotations": "text"},
        {"fingerprint": ""},
        {"fingerprint": None},
        {"startsAt": "yesterday"},
        {"startsAt": "2026-11-24T10:00:00"},
    ],
)
def test_nothing_is_believed_of_a_notification_that_is_wrong_in_one_place(change: dict[str, Any]) -> None:
    """The good alert before the wrong one is not taken either: Alertmanager's call is answered with 400 as a whole."""
    with pytest.raises(ValueError):
        parse_notification(notification(alert("good"), alert() | change), NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"alerts": {}}', b'{"alerts": [1]}', b"\xff"])
def test_a_body_that_lists_no_alerts_is_no_notification(body: bytes) -> None:
    """UnicodeDecodeError and JSONDecodeError are ValueErrors, too."""
    with pytest.raises(ValueError):
        parse_notification(body, NOW)


def test_an_alert_without_annotations_and_our_labels_is_told_without_them() -> None:
    """Other rules than ours may call the same webhook."""
    bare = alert() | {"labels": {"alertname": "theirs"}, "annotations": None}

    [told] = parse_notification(notification(bare), NOW)

    assert (told.alert.name, told.alert.severity, told.alert.action, told.alert.summary) == ("theirs", "", "", "")
    assert told.is_firing


def test_what_a_notification_does_not_name_stays_as_it_was() -> None:
    """A group's call names its own alerts only."""
    first = after((), alert("a"))

    assert [each.fingerprint for each in after(first, alert("b"))] == ["a", "b"]
    assert after(first) == first


def test_a_resolved_alert_is_gone_whether_or_not_it_was_known() -> None:
    """The prober may have started in between."""
    assert after(after((), alert("a"), alert("b")), alert("a", "resolved"), alert("c", "resolved")) == after(
        (), alert("b")
    )


def test_the_last_word_on_an_alert_within_one_notification_holds() -> None:
    """The order is Alertmanager's."""
    assert after((), alert("a"), alert("a", "resolved")) == ()
    assert len(after((), alert("a", "resolved"), alert("a"))) == 1


def test_the_alert_that_fires_longest_comes_first() -> None:
    """Whatever the order in which they were told; ties are in the order of fingerprints."""
    told = [alert("z", since="2026-11-24T09:00:00Z"), alert("b"), alert("a")]

    assert [each.fingerprint for each in after((), *told)] == ["z", "a", "b"]
    assert after((), *reversed(told)) == after((), *told)


def test_an_alert_that_is_not_repeated_is_forgotten_and_one_that_is_stays() -> None:
    """Alertmanager repeats what fires; a lost "resolved" must not fire for ever."""
    first = after((), alert("a"), alert("b"))
    repeated = after(first, alert("b"), now=NOW + timedelta(days=1))

    assert after(repeated, now=NOW + FORGET_AFTER - timedelta(seconds=1)) == repeated
    assert [each.fingerprint for each in after(repeated, now=NOW + FORGET_AFTER)] == ["b"]


def test_an_alert_survives_being_written_and_read() -> None:
    [found] = after((), alert(since="2026-11-24T10:00:00.123456+02:00"))

    assert ActiveAlert.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("body", [b'{"alerts": [{"status": "\\ud800"}]}', b'{"alerts":' * 5000, b'{"alerts": [1e999]}'])
def test_a_notification_that_no_json_of_ours_can_repeat_is_refused(body: bytes) -> None:
    """A lone surrogate in a label broke /health.json for as long as the alert fired; deep nesting is no crash."""
    with pytest.raises(ValueError, match=r"surrogates|nested|number"):
        parse_notification(body, NOW)
