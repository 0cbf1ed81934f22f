"""A stand-in for the cluster's DNS: Services, their pods, and names that tests add. It forwards nothing.

It follows the DNS specification of Kubernetes: the name of a Service has the Service's address, that of a headless one
the addresses of its ready pods, and a pod with a host name has a name below it. What the API server says is read again
after a second. It answers over UDP, and for IPv4 addresses only: a name has no records of another type.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address

import httpx

from tests.cluster.control_plane import Object

ZONE = "cluster.local"
_A, _IN = 1, 1
_NO_SUCH_NAME, _FAILED = 3, 2
_KEPT_S, _TTL_S = 1.0, 1


class Names:
    """other: further names, by which pods know servers outside of the cluster."""

    def __init__(self, api: httpx.Client, other: Mapping[str, str]) -> None:
        self._api, self._other = api, other
        self._lock = threading.Lock()
        self._kept: dict[str, set[str]] = {}
        self._read_at = float("-inf")

    def find(self, name: str) -> set[str] | None:
        """Return the addresses of a name, which may be none; None: there is no such name."""
        if name in self._other:
            return {self._other[name]}
        with self._lock:
            if time.monotonic() - self._read_at > _KEPT_S:
                self._kept, self._read_at = self._read(), time.monotonic()
            return self._kept.get(name)

    def _read(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for service in self._list("/api/v1/services"):
            address = service["spec"].get("clusterIP", "None")
            found[_name_of(service["metadata"])] = set() if address == "None" else {address}
        headless = {name for name, addresses in found.items() if not addresses}
        for each in self._list("/apis/discovery.k8s.io/v1/endpointslices"):
            labels = each["metadata"].get("labels", {})
            name = _name_of(each["metadata"] | {"name": labels.get("kubernetes.io/service-name", "")})
            for endpoint in each.get("endpoints") or () if name in headless else ():
                if endpoint.get("conditions", {}).get("ready", True):
                    found[name].update(endpoint["addresses"])
                    if "hostname" in endpoint:
                        found.setdefault(f"{endpoint['hostname']}.{name}", set()).update(endpoint["addresses"])
        return found

    def _list(self, path: str) -> list[Object]:
        return list(self._api.get(path).raise_for_status().json()["items"])


def _name_of(metadata: Object) -> str:
    return f"{metadata['name']}.{metadata['namespace']}.svc.{ZONE}"


def answer(query: bytes, names: Names) -> bytes:
    """Return the answer to one question, as RFC 1035 writes both."""
    number, flags = struct.unpack_from("!HH", query)
    labels, place = [], 12
    while size := query[place]:
        labels.append(query[place + 1 : place + 1 + size].decode("ascii", "replace").lower())
        place += 1 + size
    place += 1
    kind, _ = struct.unpack_from("!HH", query, place)
    question = query[12 : place + 4]
    try:
        found, code = names.find(".".join(labels)), 0
    except httpx.HTTPError:
        found, code = None, _FAILED
    if found is None:
        code = code or _NO_SUCH_NAME
    addresses = sorted(found or ()) if kind == _A else []
    answers = b"".join(
        struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL_S, 4) + IPv4Address(each).packed for each in addresses
    )
    # an answer, by the authority for the name, with what the question wished for recursion
    header = struct.pack("!HHHHHH", number, 0x8480 | flags & 0x0100 | code, 1, len(addresses), 0, 0)
    return header + question + answers


@contextmanager
def serving_names(api: httpx.Client, host: str, other: Mapping[str, str]) -> Iterator[None]:
    """Answer on port 53 of an address while the block runs."""
    names = Names(api, other)

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, socket = self.request
            # a malformed question gets no answer, and neither does one that comes while the tests end
            with contextlib.suppress(struct.error, IndexError, OSError):
                socket.sendto(answer(query, names), self.client_address)

    with socketserver.ThreadingUDPServer((host, 53), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
