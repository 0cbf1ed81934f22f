"""The packets that prove a firewall follow from the list of flows."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.manifests.servers.firewall_packets import plan_packets
from synapse_ops.manifests.stack.flows import Inbound, inbound
from tests.manifests.specs import spec_of

NETWORKS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: str(ipaddress.ip_network((address, length), strict=False))
    )
)


def test_the_default_firewall_is_proven_as_the_reference_says() -> None:
    """22 only from 10/8, 80 and 443 from anywhere, 5432 from nowhere."""
    verdicts = {(packet.source, packet.port): packet.verdict for packet in plan_packets(inbound(spec_of("default")))}

    assert verdicts["10.0.0.1", 22] == verdicts["10.255.255.254", 22] == "accept"
    assert verdicts["9.255.255.255", 22] == verdicts["11.0.0.0", 22] == verdicts["fd12:3456::9", 22] == "drop"
    assert verdicts["192.0.2.7", 80] == verdicts["192.0.2.7", 443] == "accept"
    assert {verdict for (_, port), verdict in verdicts.items() if port == 5432} == {"drop"}


@given(st.lists(st.tuples(NETWORKS, st.integers(1, 65535)), max_size=10))
def test_a_packet_is_accepted_only_from_a_listed_network(rules: list[tuple[str, int]]) -> None:
    """Whatever is listed, in whatever order."""
    for packet in plan_packets(tuple(Inbound(source, port) for source, port in rules)):
        source = ipaddress.ip_address(packet.source)
        listed = any(port == packet.port and source in ipaddress.ip_network(network) for network, port in rules)
        assert (packet.verdict == "accept") == listed
