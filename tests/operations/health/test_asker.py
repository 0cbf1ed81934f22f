"""Each way in which an endpoint can misbehave gets the right verdict in time, from a real server that does so."""

from __future__ import annotations

import asyncio
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.domain.health.http import judge_reply
from synapse_ops.domain.health.states import ProbeVerdict, State
from synapse_ops.operations.health.asker import ENDPOINT, Asker, Probe
from synapse_ops.operations.health.probes import endpoint_url
from synapse_ops.operations.stack import open_stack
from synapse_ops.systems.http_probe import HttpProbe
from synapse_ops.systems.probe_stage import Stage
from tests.misbehaving import MisbehavingServer, make_certificate, misbehaving

TIMEOUT_S = 1.0  # for what does not end by itself
PATIENT_S = 2.9  # for what answers in time on a busy host too; SLOW_S is just over half of it
LATEST_S = 20.0  # what hangs does so for an hour


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with misbehaving() as running:
        yield running


def ask(url: str, ca_file: Path | None = None, *, times: int = 1, timeout_s: float = PATIENT_S) -> list[ProbeVerdict]:
    """Return the verdicts of one probe, asked one after the other by a client of its own."""

    async def run() -> list[ProbeVerdict]:
        http = HttpProbe(str(ca_file) if ca_file else None)

        async def question(stage: Stage) -> ProbeVerdict:
            return judge_reply(await http.get(url, stage), timeout_s=timeout_s)

        asker = Asker(Probe("it", ENDPOINT, url, 1.0, timeout_s, question))
        try:
            return [await asker.ask() for _ in range(times)]
        finally:
            await http.close()

    return asyncio.run(run())


def ask_in_time(url: str, ca_file: Path | None = None, *, timeout_s: float = PATIENT_S) -> ProbeVerdict:
    began = time.monotonic()
    [verdict] = ask(url, ca_file, timeout_s=timeout_s)
    assert time.monotonic() - began <= LATEST_S
    return verdict


@pytest.mark.parametrize(
    ("path", "state", "words"),
    [
        ("/ok", State.HEALTHY, ""),
        ("/redirect-once", State.HEALTHY, ""),
        ("/degraded-body", State.DEGRADED, "degraded"),
        ("/slow", State.DEGRADED, "more than half of its timeout"),
        ("/hang", State.FAILED, "no verdict within 1 s: waiting for an answer"),
        ("/drip-body", State.FAILED, "no verdict within 1 s: waiting for the end of the body"),
        ("/drip-headers", State.FAILED, "no verdict within 1 s: waiting for an answer"),
        ("/redirect-loop", State.FAILED, "redirects too often"),
        ("/redirect-to-file", State.FAILED, "neither http nor https"),
        ("/redirect-nowhere", State.FAILED, "302"),
        ("/error-body", State.FAILED, 'with "error" in the body'),
        ("/down", State.FAILED, "answered 503: no database"),
        ("/cut", State.FAILED, "ended before a whole answer"),
        ("/garbage", State.FAILED, "ended before a whole answer"),
        ("/nothing", State.FAILED, "ended before a whole answer"),
        ("/endless-body", State.DEGRADED, "its body does not end within 65536 bytes"),
        ("/gib-body", State.DEGRADED, "its body does not end within 65536 bytes"),
        ("/gzip-bomb", State.DEGRADED, "its body is compressed ('gzip')"),
        ("/huge-header", State.FAILED, "ended before a whole answer"),
        ("/reset", State.FAILED, "ended before a whole answer"),
        ("/redirect-elsewhere", State.FAILED, "redirects to another host, localhost"),
    ],
)
def test_each_misbehaviour_gets_its_state_and_reason_in_time(
    server: MisbehavingServer, path: str, state: State, words: str
) -> None:
    """A body without end is read to our limit and not believed; whatever takes too long says where it stood."""
    verdict = ask_in_time(server.url(path), timeout_s=TIMEOUT_S if "no verdict" in words else PATIENT_S)

    assert verdict.state is state, verdict
    assert words in verdict.reason


@pytest.mark.parametrize("path", ["/gib-body", "/gzip-bomb", "/huge-header"])
def test_what_would_fill_memory_is_left_after_a_little(server: MisbehavingServer, path: str) -> None:
    """The gibibyte stays where it is; 64 MiB that came packed are never unpacked."""
    before = server.sent.get(path, 0)
    tracemalloc.start()
    try:
        ask(server.url(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert server.sent.get(path, 0) - before < 32 << 20
    assert peak < 16 << 20


def test_a_name_that_does_not_resolve_is_failed_in_time() -> None:
    """Whatever the resolver does: it says no, or it hangs."""

    async def run() -> tuple[ProbeVerdict, float]:
        http = HttpProbe()

        async def question(stage: Stage) -> ProbeVerdict:
            return judge_reply(await http.get("http://nobody.invalid/", stage), timeout_s=TIMEOUT_S)

        began = time.monotonic()
        verdict = await Asker(Probe("it", ENDPOINT, "", 1.0, TIMEOUT_S, question)).ask()
        took_s = time.monotonic() - began
        await http.close()
        return verdict, took_s

    verdict, took_s = asyncio.run(run())

    assert verdict.state is State.FAILED
    assert "the name nobody.invalid is not known" in verdict.reason or "connecting" in verdict.reason
    assert took_s <= LATEST_S


def test_a_redirect_loop_ends_after_a_few_requests(server: MisbehavingServer) -> None:
    """We do not become the load."""
    before = server.asked.get("/redirect-loop", 0)

    ask(server.url("/redirect-loop"))

    assert server.asked["/redirect-loop"] - before == 6


@pytest.mark.parametrize(
    ("name", "days", "trusted", "state", "words"),
    [
        ("127.0.0.1", 100, True, State.HEALTHY, ""),
        ("127.0.0.1", 5, True, State.DEGRADED, "its certificate ends in 5 days"),
        ("127.0.0.1", 100, False, State.FAILED, "its certificate is wrong: self-signed certificate"),
        ("127.0.0.1", -1, True, State.FAILED, "its certificate is wrong: certificate has expired"),
        ("example.org", 100, True, State.FAILED, "its certificate is wrong: IP address mismatch"),
    ],
)
def test_a_wrong_certificate_is_a_failure_that_says_what_is_wrong(
    tmp_path: Path, name: str, days: float, trusted: bool, state: State, words: str
) -> None:
    """Unknown authority, ended, of another host: each is named; one that ends soon is a warning."""
    with misbehaving(make_certificate(tmp_path, name=name, days=days)) as tls:
        verdict = ask_in_time(tls.url("/ok"), tmp_path / f"{name}.crt" if trusted else None)

    assert verdict.state is state, verdict
    assert words in verdict.reason


def test_a_port_where_nothing_listens_is_a_failure_at_once() -> None:
    """No time-out is waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        verdict = ask_in_time(f"http://127.0.0.1:{free.getsockname()[1]}/")

    assert verdict.state is State.FAILED
    assert "nothing answers at" in verdict.reason


def test_a_server_that_never_accepts_tls_says_where_it_hangs(server: MisbehavingServer) -> None:
    """An https probe of a plain port waits for the handshake."""
    verdict = ask_in_time(server.url("/ok").replace("http://", "https://"), timeout_s=TIMEOUT_S)

    assert verdict.state is State.FAILED
    assert "TLS" in verdict.reason


def test_a_question_that_does_not_end_when_cancelled_is_asked_again_only_after_it_has() -> None:
    """A thing that hangs costs one question, not one more each interval; the verdict does not wait for it."""

    async def run() -> tuple[list[ProbeVerdict], int]:
        asked = 0
        let_go = asyncio.Event()

        async def stubborn(stage: Stage) -> ProbeVerdict:
            nonlocal asked
            asked += 1
            stage.words = "not listening"
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            return ProbeVerdict(State.HEALTHY)

        asker = Asker(Probe("it", ENDPOINT, "", 1.0, 0.05, stubborn))
        verdicts = [await asker.ask(), await asker.ask()]
        let_go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [*verdicts, await asker.ask()], asked

    verdicts, asked = asyncio.run(run())

    assert [verdict.state for verdict in verdicts] == [State.FAILED, State.FAILED, State.HEALTHY]
    assert "not listening" in verdicts[0].reason
    assert "the previous check is still running" in verdicts[1].reason
    assert asked == 2


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError(24, "Too many open files"), State.UNKNOWN),
        (ZeroDivisionError("ours"), State.UNKNOWN),
        (OSError(113, "No route to host"), State.FAILED),
    ],
)
def test_our_own_trouble_is_unknown_and_theirs_is_failed(error: Exception, state: State) -> None:
    """An endpoint is never blamed for what the prober could not do."""

    async def broken(stage: Stage) -> ProbeVerdict:
        raise error

    verdict = asyncio.run(Asker(Probe("it", ENDPOINT, "", 1.0, 1.0, broken)).ask())

    assert verdict.state is state
    assert verdict.reason


@pytest.mark.parametrize(
    ("server", "entry", "asked"),
    [
        ("{host: 0.0.0.0, port: 8000}", "/health", "http://127.0.0.1:8000/health"),
        ("{host: '2001:db8::7', port: 8000}", "/health", "http://[2001:db8::7]:8000/health"),
        ("{host: '::', port: 8000}", "/go?to=http://other/", "http://[::1]:8000/go?to=http://other/"),
        ("{}", "https://other:8443/health", "https://other:8443/health"),
    ],
)
def test_a_relative_endpoint_lies_below_the_server_whatever_is_in_it(
    tmp_path: Path, server: str, entry: str, asked: str
) -> None:
    """An IPv6 address takes brackets; a path that carries a URL is still a path."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(f"server: {server}\nhealth: [{{name: it, url: '{entry}'}}]\n")

    assert endpoint_url(open_stack(spec, tmp_path), entry) == asked


def test_a_verdict_says_nothing_that_cannot_be_stored_or_that_a_terminal_obeys() -> None:
    """Half of a surrogate pair ended the prober, which could not store it; a measurement that is none is left out."""

    async def question(stage: Stage) -> ProbeVerdict:
        del stage
        return ProbeVerdict(State.FAILED, "no \x1b[2Jdata\ud800base", 0.1, {"lag_s": float("nan"), "peers": 3.0})

    verdict = asyncio.run(Asker(Probe("it", ENDPOINT, "", 1.0, PATIENT_S, question)).ask())

    assert verdict.reason == r"no \x1b[2Jdata\ud800base"
    assert verdict.measurements == {"peers": 3.0}
