"""The health checks of the API's own process, the same in the image, in compose, in Kubernetes and in haproxy.

`health` lists what is monitored, and how often: that is no period for a probe, by which a dead pod is found. Of the
checks whose url is a path of the application, one says by its path that the process lives; the first of the others
says that it can serve. A restart cures only the former, so that a lost database never restarts the API.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import NamedTuple

from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec

PERIOD_S = 10  # Kubernetes' default: a pod that cannot serve is out of service after half a minute
TIMEOUT_S = 5  # a busy process is not a dead one
FAILURES = 3  # in a row, before a container counts as unhealthy: Kubernetes' and Docker's own default
START_LIMIT = timedelta(minutes=5)  # a process that has not started by then is started anew

# Paths that ask a process for its own life by the usual words. `/health/db` and `/readyz` ask for more.
_LIVES = re.compile(
    r"(?:/(?:api|internal|v\d+|-))*(?:/(?:health|healthz|healthcheck|ping))?/(?:live|livez|liveness|alive)"
)
_IS_HEALTHY = re.compile(r"(?:/(?:api|internal|v\d+|-))*/(?:health|healthz|healthcheck|ping|up)")


class Probe(NamedTuple):
    """One HTTP GET of the application, each PERIOD_S."""

    path: str
    timeout_s: int


def liveness(spec: Spec) -> Probe | None:
    """Return what says that the process lives; None when no check's path is known to: then an open port has to do."""
    own = _own(spec)
    return next((probe for form in (_LIVES, _IS_HEALTHY) for probe in own if form.fullmatch(probe.path)), None)


def readiness(spec: Spec) -> Probe | None:
    """Return what says that it can serve: the first check of another path than liveness, else the same."""
    own, live = _own(spec), liveness(spec)
    return next((probe for probe in own if live is None or probe.path != live.path), live)


def liveness_failures(spec: Spec) -> int:
    """Return how many failures in a row mean that the process is dead. Twice as many where both probes ask the same:
    what cannot serve is taken out of service first, and started anew only when that did not help.
    """
    return FAILURES if liveness(spec) != readiness(spec) else 2 * FAILURES


def _own(spec: Spec) -> list[Probe]:
    """Return the checks of the application; each may take its own time, within reason."""
    checks = [check for check in spec.health if check.url.startswith("/")]
    return [Probe(check.url, min(max(TIMEOUT_S, whole_seconds(check.timeout)), PERIOD_S)) for check in checks]
