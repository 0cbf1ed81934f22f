"""Times that programs which get them cannot take: what is valid in the spec would be a file that they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.spec.conflict import Conflict
from synapse_ops.spec.document import Spec
from synapse_ops.spec.faults import FieldPath
from synapse_ops.spec.units import format_duration

# haproxy's timers and PostgreSQL's statement_timeout are 31 bits of milliseconds: 24.8 days. Kubernetes has seconds.
_LONGEST = timedelta(days=24)
# Prometheus forgets a sample after 5 minutes, its `query.lookback-delta`, and our own alerts compare the samples of
# 5 minutes: with one of them each, neither would ever hold.
_LONGEST_SCRAPE = timedelta(minutes=2)


def times_fit_their_programs(spec: Spec) -> Iterator[Conflict]:
    """A time that a program of the stack cannot take: above 24d in `server.timeout`, `server.keepalive`,
    `worker.timeout`, `updates.timeout` or `health[].interval`; above 2m in `prometheus.scrape_interval` or
    `prometheus.evaluation_interval`, because alerts compare samples of 5m, after which Prometheus forgets them.
    """
    long: list[tuple[FieldPath, timedelta]] = [
        (("server", "timeout"), spec.server.timeout),
        (("server", "keepalive"), spec.server.keepalive),
        (("worker", "timeout"), spec.worker.timeout),
        (("updates", "timeout"), spec.updates.timeout),
        *((("health", index, "interval"), check.interval) for index, check in enumerate(spec.health)),
    ]
    scraped: list[tuple[FieldPath, timedelta]] = [
        (("prometheus", "scrape_interval"), spec.prometheus.scrape_interval),
        (("prometheus", "evaluation_interval"), spec.prometheus.evaluation_interval),
    ]
    for fields, limit in ((long, _LONGEST), (scraped, _LONGEST_SCRAPE)):
        for path, value in fields:
            if value > limit:
                yield Conflict(path, format_duration(value), f"at most {format_duration(limit)}")
