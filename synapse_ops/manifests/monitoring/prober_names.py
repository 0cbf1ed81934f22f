"""The names by which rendered files call Synapse Ops' prober: what it must answer to besides this host's own."""

from __future__ import annotations

from urllib.parse import urlsplit

from synapse_ops.manifests.monitoring.alertmanager import default_webhook_url
from synapse_ops.manifests.monitoring.prometheus import PATHS, scraped_addresses
from synapse_ops.spec import Spec


def prober_names(spec: Spec) -> frozenset[str]:
    """Return Host headers, port included: where Prometheus scrapes the prober, and where Alertmanager calls it."""
    scraped = {address.lower() for place in PATHS for address in scraped_addresses(spec, "synapse_ops", place)}
    called = {urlsplit(default_webhook_url(spec, place)).netloc for place in PATHS}
    return frozenset(scraped | (called if spec.alerting.webhook_url is None else set()))
