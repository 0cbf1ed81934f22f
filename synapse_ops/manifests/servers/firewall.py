"""The host firewall as an nftables ruleset, from the inbound flows; what is not listed is dropped.

The file replaces its own table in one transaction and leaves other tables alone, so that loading it again is safe and
container engines keep theirs. Ports that an engine publishes never pass `input`: they are rewritten before it, which
is how a database on a published port is open to the world behind a firewall that looks closed. The forward chain
therefore judges them by the port that the client asked for.
"""

from __future__ import annotations

import ipaddress

from synapse_ops.manifests.document import Document, text_document
from synapse_ops.manifests.servers.firewall_packets import packet_table, plan_packets
from synapse_ops.manifests.stack.flows import Inbound, inbound
from synapse_ops.spec import Spec

READS = frozenset({"firewall"})
TABLE = "synapse_ops"

_HEAD = f"""#!/usr/sbin/nft -f
# Load: nft -f nftables.conf   Check without loading: nft -c -f nftables.conf
table inet {TABLE}
delete table inet {TABLE}

table inet {TABLE} {{
"""
_INPUT = """
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iif lo accept
    icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept
    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request } accept
    icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept
    icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept comment "else a switch forgets who listens"
    udp sport 547 udp dport 546 ip6 saddr fe80::/10 accept comment "DHCPv6 replies"
"""
_FORWARD = """
  chain forward {
    # published ports of containers; other forwarded traffic is not ours to judge
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    ct status dnat jump published
  }

  chain published {
"""


def render_firewall(spec: Spec) -> tuple[Document, ...]:
    """Return the ruleset, and the packets that prove it."""
    allowed = inbound(spec)
    return (
        text_document("firewall/nftables.conf", ruleset(allowed), READS),
        text_document("firewall/tests/packets.tsv", packet_table(plan_packets(allowed)), READS),
    )


def ruleset(allowed: tuple[Inbound, ...]) -> str:
    """Return the text that nft loads."""
    text = _HEAD + _INPUT.lstrip("\n")
    text += "".join(f"    {_match(flow, 'tcp dport')} accept\n" for flow in allowed)
    text += '    counter comment "refused"\n  }\n' + _FORWARD
    text += "".join(f"    {_match(flow, 'ct original proto-dst', protocol=True)} accept\n" for flow in allowed)
    return text + '    counter drop comment "a published port that is not listed"\n  }\n}\n'


def _match(flow: Inbound, port: str, *, protocol: bool = False) -> str:
    network = ipaddress.ip_network(flow.source)
    family = "ip" if network.version == 4 else "ip6"
    source = f"meta nfproto ipv{network.version}" if network.prefixlen == 0 else f"{family} saddr {network}"
    return f"{'meta l4proto tcp ' if protocol else ''}{source} {port} {flow.port}"
