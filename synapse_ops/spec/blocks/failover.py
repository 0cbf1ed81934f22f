"""Failover of PostgreSQL: which node takes over, on what evidence, within which limits."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from synapse_ops.spec.block import Block, Count, Duration, DurationOrZero, Node, Size, Text


class Failover(Block):
    """Failover of PostgreSQL: which node takes over, on what evidence, within which limits."""

    primary: Node = Field(
        "db-primary", description="Node that is primary at first; later the servers report which it is."
    )
    standby: Node | None = Field(
        "db-standby", description="Node that takes over; null: there is none, as with a managed or a single server."
    )
    automatic: bool = Field(True, description="Whether a confirmed outage starts a failover without confirmation.")
    timeout: Duration = Field(timedelta(seconds=30), description="Longest time from confirmation to verified writes.")
    manager: Literal["synapse", "external"] = Field(
        "synapse", description="What promotes: this tool, or an external manager that this tool only observes."
    )
    synchronous: Literal["off", "standby"] = Field(
        "off", description="`standby` loses no commit and blocks writes while the standby is away."
    )
    max_lag_bytes: Size = Field(1 << 20, description="A standby further behind is not promoted without consent.")
    primary_start_timeout: DurationOrZero = Field(
        timedelta(0), description="Time that a crashed primary is given to restart first."
    )
    cool_down: DurationOrZero = Field(timedelta(minutes=10), description="Pause after a failover before the next.")
    max_per_hour: Count = Field(2, le=60, description="Failovers in one hour, after which an operator must act.")
    stonith_command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        None, description="Program and arguments that power a node off; its exit status 0 is a fence proof."
    )
    dagster_grace: DurationOrZero = Field(
        timedelta(seconds=1), description="Head start of the Dagster run over the resident watcher."
    )

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes: the one that is primary at first, and the standby where there is one."""
        return (self.primary,) if self.standby is None else (self.primary, self.standby)

    @property
    def is_ours(self) -> bool:
        """Whether this tool promotes: there is a standby, and no other manager."""
        return self.standby is not None and self.manager == "synapse"
