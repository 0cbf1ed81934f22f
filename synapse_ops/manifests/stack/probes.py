"""The health checks of the API's own process, the same in the image, in compose and in Kubernetes.

`health` lists what is probed. Of the checks whose url is a path of the application, the first says that the process
lives, the second that it can serve: a restart cures only the former, so that a lost database never restarts the API.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from synapse_ops.spec import Spec

FAILURES = 3  # in a row, before a container counts as unhealthy: Kubernetes' and Docker's own default
START_LIMIT = timedelta(minutes=5)  # a process that has not started by then is started anew


class Probe(NamedTuple):
    """One HTTP GET of the application: `timeout` is at most `interval`."""

    path: str
    interval: timedelta
    timeout: timedelta


def liveness(spec: Spec) -> Probe | None:
    """Return what says that the process lives; None when no check is a path: then an open port has to do."""
    own = _own(spec)
    return own[0] if own else None


def readiness(spec: Spec) -> Probe | None:
    """Return what says that it can serve: the first check of another path than liveness, else the same."""
    own = _own(spec)
    return next((probe for probe in own if probe.path != own[0].path), own[0]) if own else None


def liveness_failures(spec: Spec) -> int:
    """Return how many failures in a row mean that the process is dead. Twice as many where both probes ask the same:
    what cannot serve is taken out of service first, and started anew only when that did not help.
    """
    return FAILURES if liveness(spec) != readiness(spec) else 2 * FAILURES


def _own(spec: Spec) -> list[Probe]:
    return [Probe(check.url, check.interval, check.timeout) for check in spec.health if check.url.startswith("/")]
