"""Which networks may connect, and how connections are encrypted: `firewall` and `tls`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synapse_ops.spec.block import AbsolutePath, Block, Name, Network, Port


class FirewallRule(Block):
    """One port that may be reached from one network."""

    port: Port = Field(description="Port that is opened.")
    source: Network = Field("0.0.0.0/0", description="Network that may connect.")


class Egress(Block):
    """One thing outside of the stack that the application calls."""

    name: Name = Field(description="What it is, once in the list.")
    port: Port = Field(443, description="Port that is called.")
    destination: Network | None = Field(None, description="Network that may be called; null: the open internet.")


class Firewall(Block):
    """The host firewall; what is not listed is closed."""

    inbound: tuple[FirewallRule, ...] = Field(
        (
            FirewallRule(port=80, source="0.0.0.0/0"),
            FirewallRule(port=443, source="0.0.0.0/0"),
            FirewallRule(port=22, source="10.0.0.0/8"),
        ),
        description="Rules that let traffic in. A list given here replaces the default as a whole.",
    )
    egress: tuple[Egress, ...] = Field(
        (Egress(name="internet"),),
        description="What API and worker may call besides their stores, such as models: in the cluster exactly this, "
        "in compose anything unless it is empty. A list given here replaces the default as a whole.",
    )


class Tls(Block):
    """Certificate and protocol of everything that serves TLS."""

    cert_file: AbsolutePath = Field("/etc/ssl/certs/synapse.crt", description="Certificate chain, PEM.")
    key_file: AbsolutePath = Field("/etc/ssl/private/synapse.key", description="Private key, PEM.")
    min_version: Literal["TLSv1.2", "TLSv1.3"] = Field("TLSv1.2", description="Oldest protocol that is accepted.")
