"""What every service of the compose file has: no right it does not need, limits, a restart rule, bounded logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from synapse_ops.manifests.stack.processes import USER_ID
from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_cores, parse_size

Service = dict[str, Any]
INTERNAL, OUTSIDE = "internal", "outside"
# Compose mounts a secret's file with its owner and mode on the host. Services run as many users; what lets each of them
# read a file of mode 0440, and one file serve two of them, is a group that all have.
SECRETS_GROUP = str(USER_ID)


_LEAST_MEMORY = 6 << 20  # Docker refuses to reserve less


class Size(NamedTuple):
    """The most that a helper may use whose need does not grow with the stack."""

    cores: str
    memory: str


class Share(NamedTuple):
    """The part of `resources.limits` that a helper may use which holds metrics or logs: small on a small host, where
    Docker refuses more cores than there are. The least is what its program starts with.
    """

    cores: Decimal
    memory: Fraction
    least: Size


SMALL = Size("0.5", "256M")
MIDDLE = Share(Decimal("0.5"), Fraction(1, 4), Size("0.5", "768Mi"))
LARGE = Share(Decimal(1), Fraction(1, 2), Size("1", "1Gi"))


def part_resources(spec: Spec) -> dict[str, Any]:
    """Return `resources` of the spec for a part of the stack."""
    limits, requests = spec.resources.limits, spec.resources.requests
    return {
        "limits": {"cpus": _cores(limits.cpu), "memory": f"{limits.memory}b"},
        "reservations": {"cpus": _cores(requests.cpu), "memory": f"{max(requests.memory, _LEAST_MEMORY)}b"},
    }


def helper_resources(size: Size) -> dict[str, Any]:
    """Return the limits of a helper."""
    return {"limits": {"cpus": size.cores, "memory": size.memory}}


def share_resources(spec: Spec, share: Share) -> dict[str, Any]:
    """Return the limits of a helper that grows with the stack."""
    cores = max(Decimal(share.least.cores), spec.resources.limits.cpu * share.cores)
    return {"limits": {"cpus": _cores(cores), "memory": f"{share_memory(spec, share)}b"}}


def share_memory(spec: Spec, share: Share) -> int:
    return max(parse_size(share.least.memory), int(spec.resources.limits.memory * share.memory))


def _cores(cores: Any) -> str:
    text = format_cores(cores)
    return f"{int(text[:-1]) / 1000:g}" if text.endswith("m") else text


def service(
    image: str,
    *,
    user: str,
    resources: Mapping[str, Any],
    healthcheck: Service,
    networks: Sequence[str] | Mapping[str, Any] = (INTERNAL,),
    listens: Sequence[int] = (),
    **more: Any,
) -> Service:
    """Return a hardened service. more: what it has besides, in the words of the compose specification.

    listens: ports for other services, of what shares its network too. Opens nothing; it is what references lead to.
    """
    return {
        "image": image,
        "user": user,
        "init": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        **({} if "network_mode" in more else {"networks": networks if isinstance(networks, Mapping) else [*networks]}),
        **({"expose": [str(port) for port in listens]} if listens else {}),
        **({"group_add": [SECRETS_GROUP]} if more.get("secrets") else {}),
        "deploy": {"resources": dict(resources)},
        "healthcheck": healthcheck,
        **more,
    }


def check(
    test: Sequence[str], *, interval_s: int = 15, timeout_s: int = 5, start_s: int = 60, retries: int = 3
) -> Service:
    """Return a health check."""
    return {
        "test": list(test),
        "interval": f"{interval_s}s",
        "timeout": f"{timeout_s}s",
        "retries": retries,
        "start_period": f"{start_s}s",
    }


def http_check(port: int, path: str, **times: int) -> Service:
    """Return a health check for an image that has busybox' or GNU wget."""
    return check(("CMD", "wget", "-q", "-O", "/dev/null", f"http://127.0.0.1:{port}{path}"), **times)


def curl_check(url: str, *, start_s: int = 120) -> Service:
    """Return a health check for an image that has curl."""
    return check(("CMD", "curl", "--silent", "--fail", "--output", "/dev/null", url), start_s=start_s)


def healthy(*names: str, restarts: bool = False) -> dict[str, dict[str, Any]]:
    """Return the `depends_on` of services that must be healthy first. restarts: with them, when compose replaces one:
    for what knows their address only from its own start.
    """
    more = {"restart": True} if restarts else {}
    return {name: {"condition": "service_healthy"} | more for name in names}


def metric_check(port: int, metric: str) -> Service:
    """Return a health check of an exporter: the server it watches answers it. One that shares a network namespace with
    a server which the engine started anew is left in the former one, and must not look healthy.
    """
    ask = f"wget -q -O - http://127.0.0.1:{port}/metrics | grep -q '^{metric} 1$'"
    return check(("CMD", "sh", "-c", ask), interval_s=30)


def mounted(source: str, target: str) -> dict[str, Any]:
    """Return a read-only mount of a rendered file; a path that is missing is an error, never a new directory."""
    return {
        "type": "bind",
        "source": source,
        "target": target,
        "read_only": True,
        "bind": {"create_host_path": False},
    }


def escaped(value: Any) -> Any:
    """Return the value with each `$` doubled: compose would take it for a variable."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: escaped(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(below) for below in value]
    return value
