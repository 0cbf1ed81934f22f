"""Every probe of a spec: its `health` entries under their own names, then its servers (server_probes.py)."""

from __future__ import annotations

from collections.abc import Iterator

from synapse_ops.domain.health.http import judge_reply
from synapse_ops.domain.health.states import ProbeVerdict
from synapse_ops.operations.health.asker import ENDPOINT, Probe
from synapse_ops.operations.health.server_probes import server_probes
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.probe_clients import HttpClients
from synapse_ops.systems.probe_stage import Stage


def probes_of(stack: Stack, clients: HttpClients) -> tuple[Probe, ...]:
    """Return all probes of a stack: its endpoints in the spec's order, then its servers."""
    return (*_endpoints(stack, clients), *server_probes(stack, clients))


def endpoint_url(stack: Stack, url: str) -> str:
    """Return the whole URL of a `health` entry."""
    if not url.startswith("/"):  # a path may hold ://, as /proxy?to=http://other does
        return url
    spec = stack.spec
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(spec.server.host, spec.server.host)  # noqa: S104 - compared
    base = spec.health_base_url or f"http://{f'[{host}]' if ':' in host else host}:{spec.server.port}"
    return base.rstrip("/") + url


def _endpoints(stack: Stack, clients: HttpClients) -> Iterator[Probe]:
    for entry in stack.spec.health:
        url, timeout_s = endpoint_url(stack, entry.url), entry.timeout.total_seconds()

        async def ask(stage: Stage, url: str = url, timeout_s: float = timeout_s) -> ProbeVerdict:
            reply = await clients.of(stack.spec.watch.ca_file).get(url, stage)
            return judge_reply(reply, timeout_s=timeout_s)

        yield Probe(entry.name, ENDPOINT, url, entry.interval.total_seconds(), timeout_s, ask)
