"""What an HTTP answer shows about the health of its server. A status of 200 is a claim; the body may contradict it.

Pure. It reads `status`, `ok`, `healthy` and `error` of a JSON body, and the first word of a text. Its words are of
the health+json draft (pass, warn, fail), Spring Boot (UP, DOWN, OUT_OF_SERVICE), ASP.NET (Healthy, Degraded, Unhealthy)
and Elasticsearch (green, yellow, red). A page of HTML is judged by its status alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from synapse_ops.domain.health.states import ProbeVerdict, State

FAILED_WORDS = frozenset({"error", "fail", "failed", "down", "unhealthy", "critical", "out_of_service", "red"})
DEGRADED_WORDS = frozenset({"degraded", "warn", "warning", "yellow"})
CLAIM_KEYS = ("ok", "healthy")  # false in either of them is a failure
ERROR_KEYS = ("error", "errors")  # anything but nothing in them is a failure
SLOW_RATIO = 0.5  # of the timeout: half of the way to failing is worth a word
CERTIFICATE_DAYS = 14  # certificates that renew themselves do so 30 days before the end: this one did not


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One whole answer. body: its first bytes; is_cut: there were more. encoding: how it is packed; then body is empty.

    certificate_days: None without TLS.
    """

    status: int
    latency_s: float
    content_type: str = ""
    body: bytes = b""
    is_cut: bool = False
    encoding: str = "identity"
    certificate_days: float | None = None


def judge_reply(reply: HttpReply, *, timeout_s: float) -> ProbeVerdict:
    """Return the verdict on an answer that came in time."""
    measurements = {"http_status": float(reply.status)}
    if reply.certificate_days is not None:
        measurements["certificate_days"] = reply.certificate_days
    state, reason = _worst(
        _of_status(reply),
        _of_body(reply),
        _of_rest(reply),
        _of_certificate(reply.certificate_days),
        _of_latency(reply, timeout_s),
    )
    return ProbeVerdict(state, reason, reply.latency_s, measurements)


Judged = tuple[State, str]
GOOD: Judged = (State.HEALTHY, "")


def _worst(*judged: Judged) -> Judged:
    failed = [found for found in judged if found[0] is State.FAILED]
    degraded = [found for found in judged if found[0] is State.DEGRADED]
    return next(iter((*failed, *degraded)), GOOD)


def _of_status(reply: HttpReply) -> Judged:
    if 200 <= reply.status < 300:
        return GOOD
    if reply.status == 429:
        return State.DEGRADED, "answered 429: it is checked more often than it allows"
    return State.FAILED, f"answered {reply.status}{_quoted(reply)}"


def _quoted(reply: HttpReply) -> str:
    """Return the start of a short text body for the reason; a page is not quoted."""
    if "html" in reply.content_type or not reply.body:
        return ""
    text = " ".join(reply.body[:200].decode("utf-8", errors="replace").split())
    return f": {text[:160]}"


def _of_body(reply: HttpReply) -> Judged:
    if not 200 <= reply.status < 300 or not reply.body.strip():
        return GOOD
    text = reply.body.decode("utf-8", errors="replace")
    kind = reply.content_type.lower()
    if "html" in kind:
        return GOOD
    if "json" in kind or text.lstrip().startswith("{"):
        return _of_json(reply, text)
    word = re.split(r"[\s:,.;!]", text.strip(), maxsplit=1)[0].strip("\"'")
    return _of_word(reply.status, word)


def _of_rest(reply: HttpReply) -> Judged:
    """Judge a body that was not read, or not to its end. Of a page nothing is read, so that nothing is missing."""
    if reply.encoding != "identity":
        return (
            State.DEGRADED,
            f"its body is compressed ({reply.encoding[:20]!r}), which was not requested: it is not read",
        )
    if reply.is_cut and "html" not in reply.content_type.lower():
        return State.DEGRADED, f"its body does not end within {len(reply.body)} bytes: the rest is not read"
    return GOOD


def _of_json(reply: HttpReply, text: str) -> Judged:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        if reply.is_cut:
            return GOOD
        return State.FAILED, f"answered {reply.status} with a body that is not the JSON it claims to be"
    if isinstance(document, str):
        return _of_word(reply.status, document)
    if not isinstance(document, dict):
        return GOOD
    lower: dict[str, Any] = {str(key).lower(): value for key, value in document.items()}
    words = [_of_word(reply.status, lower["status"])] if isinstance(lower.get("status"), str) else []
    claims: list[Judged] = [
        (State.FAILED, f'answered {reply.status} with "{key}": false in the body')
        for key in CLAIM_KEYS
        if lower.get(key) is False
    ]
    errors: list[Judged] = [
        (State.FAILED, f'answered {reply.status} with "{key}" in the body: {_short(lower[key])}')
        for key in ERROR_KEYS
        if lower.get(key)
    ]
    return _worst(*words, *claims, *errors)


def _of_word(status: int, word: str) -> Judged:
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in FAILED_WORDS:
        return State.FAILED, f'answered {status} with "{word.strip()[:40]}" in the body'
    if plain in DEGRADED_WORDS:
        return State.DEGRADED, f'answered {status} with "{word.strip()[:40]}" in the body'
    return GOOD


def _short(value: object) -> str:
    return " ".join(str(value).split())[:120]


def _of_certificate(days: float | None) -> Judged:
    if days is None or days >= CERTIFICATE_DAYS:
        return GOOD
    return State.DEGRADED, f"its certificate ends in {days:.0f} days, limit {CERTIFICATE_DAYS}"


def _of_latency(reply: HttpReply, timeout_s: float) -> Judged:
    if reply.latency_s <= SLOW_RATIO * timeout_s:
        return GOOD
    return State.DEGRADED, f"answered after {reply.latency_s:.1f} s, more than half of its timeout {timeout_s:g} s"
