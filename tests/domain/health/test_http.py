"""A status of 200 is a claim; the body may say otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.health.http import HttpReply, judge_reply
from synapse_ops.domain.health.states import State

JSON = "application/json"


def state_of(body: bytes, content_type: str = JSON, status: int = 200, latency_s: float = 0.01) -> State:
    reply = HttpReply(status=status, latency_s=latency_s, content_type=content_type, body=body)
    return judge_reply(reply, timeout_s=5).state


@pytest.mark.parametrize(
    "body",
    [
        b'{"status": "error"}',
        b'{"status": "DOWN", "components": {}}',
        b'{"status": "fail"}',
        b'{"Status": "Unhealthy"}',
        b'{"status": "red"}',
        b'{"ok": false}',
        b'{"healthy": false, "status": "ok"}',
        b'{"error": "connection refused"}',
        b'{"errors": [{"message": "no database"}]}',
        b'{"status": "ok"',
        b'"down"',
    ],
)
def test_an_error_in_a_200_body_is_a_failure(body: bytes) -> None:
    """The conventions in use, and JSON that is none."""
    assert state_of(body) is State.FAILED


@pytest.mark.parametrize(
    "body",
    [b"", b'{"status": "ok"}', b'{"status": "pass"}', b'{"status":"UP"}', b'{"errors": []}', b'{"error": null}', b"[]"],
)
def test_a_good_body_is_healthy(body: bytes) -> None:
    """What says nothing bad is believed."""
    assert state_of(body) is State.HEALTHY


@pytest.mark.parametrize(
    ("body", "content_type", "state"),
    [
        (b"Healthy", "text/plain", State.HEALTHY),
        (b"Unhealthy\n", "text/plain", State.FAILED),
        (b"Degraded", "text/plain", State.DEGRADED),
        (b"error: no database", "text/plain", State.FAILED),
        (b"error in a page", "text/html", State.HEALTHY),
        (b'{"status": "warn"}', "application/health+json", State.DEGRADED),
    ],
)
def test_words_are_read_in_the_form_they_come(body: bytes, content_type: str, state: State) -> None:
    """Plain text by its first word, a page not at all."""
    assert state_of(body, content_type) is state


@pytest.mark.parametrize("status", [301, 304, 400, 401, 404, 500, 503])
def test_any_other_status_is_a_failure_that_names_it(status: int) -> None:
    """Whatever the body claims."""
    verdict = judge_reply(HttpReply(status=status, latency_s=0.1, body=b'{"status": "ok"}'), timeout_s=5)

    assert verdict.state is State.FAILED
    assert str(status) in verdict.reason


def test_slow_rate_limited_and_ending_certificates_are_degraded() -> None:
    """It works, and somebody ought to look."""
    assert state_of(b"", latency_s=2.6) is State.DEGRADED
    assert state_of(b"", status=429) is State.DEGRADED
    reply = HttpReply(status=200, latency_s=0.1, certificate_days=13.0)
    assert judge_reply(reply, timeout_s=5).state is State.DEGRADED


@given(st.binary(max_size=300), st.sampled_from([JSON, "text/plain", "text/html", ""]), st.integers(100, 599))
def test_any_answer_gets_a_verdict_with_a_reason(body: bytes, content_type: str, status: int) -> None:
    """Hostile bodies included: a fault of ours is never the answer."""
    reply = HttpReply(status=status, latency_s=0.1, content_type=content_type, body=body)

    verdict = judge_reply(reply, timeout_s=5)

    assert bool(verdict.reason) == (verdict.state is not State.HEALTHY)
    assert "\n" not in verdict.reason


def test_a_body_that_was_cut_is_not_called_broken() -> None:
    """We stopped reading, not they writing; and what was not read is not called healthy."""
    reply = HttpReply(status=200, latency_s=0.1, content_type=JSON, body=b'{"status": "o', is_cut=True)

    verdict = judge_reply(reply, timeout_s=5)

    assert verdict.state is State.DEGRADED
    assert "the rest is not read" in verdict.reason


def test_a_deeply_nested_body_is_a_verdict_not_a_crash() -> None:
    """A body may be built to exhaust the parser."""
    assert state_of(b"[" * 60_000) is State.FAILED
