"""Alerts on who takes writes: none, two, and a standby that could not take over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series
from synapse_ops.manifests.monitoring.promql import quoted
from synapse_ops.spec import Spec

_MINUTE = timedelta(minutes=1)
_FIVE = timedelta(minutes=5)


def failover_alerts(spec: Spec) -> Iterator[AlertRule]:
    """Yield the alerts on both nodes; without a standby the one on the only node."""
    if spec.failover.standby is None:
        yield _only_node(spec)
        return
    primaries, standbys = "synapse_ops_replication_primaries", "synapse_ops_replication_standbys"
    lag = "synapse_ops_replication_lag_bytes"
    limit = spec.failover.max_lag_bytes
    behind = "it is not promoted without consent: automatic failover is refused"
    if spec.failover.manager == "external":
        behind = "much is lost if it is promoted"
    yield AlertRule(
        name="primary_down",
        expr=f"max({primaries}) == 0",
        hold=spec.failover.primary_start_timeout,
        severity="critical",
        summary="no PostgreSQL node takes writes",
        description=f"Neither {spec.failover.primary} nor {spec.failover.standby} answers as a primary.",
        page="primary-down",
        dashboard="database",
        proof=Proof(bad=(Series(primaries, 0),), good=(Series(primaries, 1),)),
    )
    yield AlertRule(
        name="TwoPrimaries",
        expr=f"max({primaries}) > 1",
        hold=timedelta(0),
        severity="critical",
        summary="{{ $value }} PostgreSQL nodes take writes",
        description="Writes go to histories that will never meet again. Every minute loses more.",
        page="two-primaries",
        dashboard="database",
        proof=Proof(bad=(Series(primaries, 2),), good=(Series(primaries, 1),)),
    )
    yield AlertRule(
        name="StandbyMissing",
        expr=f"max({standbys}) < 1",
        hold=_FIVE,
        severity="critical",
        summary="no standby answers",
        description=f"Nothing could take over from the primary; {spec.failover.standby} is expected to.",
        page="standby-missing",
        dashboard="database",
        proof=Proof(bad=(Series(standbys, 0),), good=(Series(standbys, 1),)),
    )
    yield AlertRule(
        name="StandbyLag",
        expr=f"max({lag}) > {limit}",
        hold=_MINUTE,
        severity="critical",
        summary="the standby is {{ $value | humanize1024 }}B behind",
        description=f"Beyond failover.max_lag_bytes {behind}.",
        page="standby-lag",
        dashboard="database",
        proof=Proof(bad=(Series(lag, limit + 1),), good=(Series(lag, limit),)),
    )


def _only_node(spec: Spec) -> AlertRule:
    node = spec.failover.primary
    up = f"synapse_ops_probe_up{{probe={quoted(f'server/{node}')}}}"
    return AlertRule(
        name="primary_down",
        expr=f"max({up}) == 0",
        hold=spec.failover.primary_start_timeout,
        severity="critical",
        summary="PostgreSQL takes no writes",
        description=f"{node} does not answer, or takes no writes. There is no other node.",
        page="primary-down",
        dashboard="database",
        proof=Proof(bad=(Series(up, 0),), good=(Series(up, 1),)),
    )
