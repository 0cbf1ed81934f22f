"""The packets that prove a firewall: who must reach which port, and who must not. From the flows, not the ruleset."""

from __future__ import annotations

import ipaddress
from typing import Literal, NamedTuple

from synapse_ops.manifests.stack.flows import Inbound

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# senders from everywhere: documentation, private and public addresses
_STRANGERS = ("192.0.2.7", "10.200.3.4", "172.20.1.1", "192.168.77.5", "9.9.9.9", "2001:db8:ffff::7", "fd12:3456::9")
_STORES = (5432, 6379, 6333)  # closed unless a rule opens them


class Packet(NamedTuple):
    """The first packet of a TCP connection from `source` to `port` of the host, and what becomes of it."""

    verdict: Literal["accept", "drop"]
    source: str
    port: int


def plan_packets(allowed: tuple[Inbound, ...]) -> tuple[Packet, ...]:
    """Return packets for every listed port and the stores': first, last and next addresses of each network, strangers.

    An address that no packet can come from over a wire (loopback, multicast, link-local, reserved) is left out.
    """
    networks_of: dict[int, list[Network]] = {port: [] for port in _STORES}
    for flow in allowed:
        networks_of.setdefault(flow.port, []).append(ipaddress.ip_network(flow.source))
    packets = []
    for port, networks in sorted(networks_of.items()):
        edges = [address for network in networks for address in _edges(network)]
        for address in dict.fromkeys([*edges, *map(ipaddress.ip_address, _STRANGERS)]):
            is_in = any(address in network for network in networks)
            if _can_send(address):
                packets.append(Packet("accept" if is_in else "drop", str(address), port))
    return tuple(packets)


def packet_table(packets: tuple[Packet, ...]) -> str:
    """Return one row a packet, its columns parted by tabs."""
    rows = "".join(f"{packet.verdict}\t{packet.source}\t{packet.port}\n" for packet in packets)
    return f"# what becomes of a connection\tfrom\tto this port\n{rows}"


def _edges(network: Network) -> list[Address]:
    """Return the first and last usable address of a network, and its neighbours on both sides."""
    first, last = int(network[0]), int(network[-1])
    inner = 1 if network.num_addresses > 2 else 0
    kind = type(network[0])
    numbers = (first + inner, last - inner, first - 1, last + 1)
    return [kind(number) for number in numbers if 0 <= number < 2**network.max_prefixlen]


def _can_send(address: Address) -> bool:
    is_special = address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified
    return not (is_special or address.is_reserved or address in ipaddress.ip_network("0.0.0.0/8"))
