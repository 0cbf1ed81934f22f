"""Renders what `promtool test rules` runs: each alert fires, fires no earlier than its `for` says, and resolves.

The series of a rule's proof are bad from time 0 until the alert has fired, and good from then on. Whether it fires is
read from ALERTS, so that texts of annotations stay free to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from decimal import Decimal

from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series
from synapse_ops.manifests.monitoring.promql import number, rate_range
from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_duration

_LONGEST_STEP = timedelta(minutes=1)
_SHORTEST_STEP = timedelta(seconds=1)


def alert_tests(spec: Spec, alerts: Sequence[AlertRule], groups: Sequence[str]) -> dict[str, object]:
    """Return the test file. Its step is one minute, or shorter where an alert holds for less.

    groups: in the order of evaluation; without it promtool's order is that of a hash, and differs from run to run.
    """
    holds = [alert.hold for alert in alerts if alert.hold] + [_LONGEST_STEP]
    step = max(_SHORTEST_STEP, min(holds))
    return {
        "rule_files": ["../rules/recording.yml", "../rules/alerts.yml"],
        "evaluation_interval": format_duration(step),
        "group_eval_order": list(groups),
        "tests": [_test(spec, alert, step) for alert in alerts],
    }


def _test(spec: Spec, alert: AlertRule, step: timedelta) -> dict[str, object]:
    proof = alert.proof
    hold = _steps(alert.hold, step)
    # a rate over a range that is not full yet is too small: somewhere in the first range its condition begins to hold
    settles = _steps(rate_range(spec), step) + 1 if proof.is_rate else 0
    fires = settles + hold
    resolved = fires + 2 + settles
    checks = []
    if hold > 0:
        checks.append(_check(alert, hold - 1, step, firing=False))
    checks.append(_check(alert, fires, step, firing=True))
    if proof.good:
        checks.append(_check(alert, resolved, step, firing=False))
    return {
        "name": alert.name,
        "interval": format_duration(step),
        "input_series": list(_inputs(proof, fires, resolved, step)),
        "promql_expr_test": checks,
    }


def _steps(value: timedelta, step: timedelta) -> int:
    return -(-value // step)


def _check(alert: AlertRule, at: int, step: timedelta, *, firing: bool) -> dict[str, object]:
    selector = f'ALERTS{{alertname="{alert.name}",alertstate="firing",severity="{alert.severity}"}}'
    samples: list[dict[str, object]] = [{"labels": "{}", "value": 1}] if firing else []
    return {"expr": f"count({selector})", "eval_time": format_duration(at * step), "exp_samples": samples}


def _inputs(proof: Proof, fires: int, resolved: int, step: timedelta) -> Iterator[dict[str, str]]:
    """Yield the series: bad at the steps 0..fires, good after them."""
    bad, good = ({series.selector: series for series in phase} for phase in (proof.bad, proof.good))
    for selector in dict.fromkeys([*bad, *good]):
        missing = Series(selector, None)
        phases = [
            _values(bad.get(selector, missing), 0, fires + 1, step),
            _values(good.get(selector, missing), fires + 1, resolved - fires, step),
        ]
        yield {"series": selector, "values": " ".join(phases)}


def _values(series: Series, first: int, count: int, step: timedelta) -> str:
    """Return promtool's notation of `count` samples, of which the first is that of step `first`."""
    if series.value is None:
        return f"_x{count}"
    grows = Decimal(series.per_second) * (step // timedelta(milliseconds=1)) / 1000
    start = series.value + grows * first
    return f"{number(start)}+{number(grows)}x{count - 1}"
