"""A client that verifies finds in the certificate the name by which it asks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.spec.loading import check_text
from tests.manifests.specs import CHANGES

SPECS = CHANGES | {
    "nodes by address": {"database": {"nodes": {"db-primary": "10.0.0.7:5432", "db-standby": "[2001:db8::8]:5433"}}},
    "Qdrant with TLS in a long namespace": {
        "qdrant": {"tls": True, "host": "127.0.0.1", "ca_file": "/etc/ssl/ca.crt"},
        "kubernetes": {"namespace": "n" * 63},
    },
}


@pytest.mark.parametrize("name", SPECS)
def test_the_certificate_names_every_host_that_is_verified(name: str) -> None:
    """Of servers that are ours or set up by our files: nodes of the database by URL and by primary_conninfo, and what
    Prometheus scrapes over TLS. Somebody else's server has its own certificate.
    """
    loaded, faults = check_text(json.dumps(SPECS[name] or {"name": "synapse"}), Path("spec.yaml"))
    assert loaded is not None, faults
    spec, bundle = loaded.spec, render_bundle(loaded.spec)
    elsewhere = {spec.database.host, spec.qdrant.host} - {"localhost", "127.0.0.1"}
    if spec.database.nodes:
        elsewhere -= {address.rpartition(":")[0] for address in spec.database.nodes.values()}
    elif spec.database.host in elsewhere:
        elsewhere.add(str(spec.failover.standby))

    listed = set(bundle.by_path["tls/certificate-names.txt"].text.split())

    assert _verified(bundle) - elsewhere - listed == set()


def _verified(bundle: Bundle) -> set[str]:
    """Return the hosts that clients verify by the rendered documents."""
    texts = [document.text for document in bundle.documents if document.path.suffix in {".txt", ".yaml", ".conf"}]
    authorities = [found for text in texts for found in re.findall(r"postgresql://[^@\s/]+@([^/\s]+)/", text)]
    urls = [f"//{one}" for authority in authorities for one in authority.split(",")]
    hosts = {urlsplit(url).hostname or "" for url in urls}
    hosts |= {host for text in texts for host in re.findall(r"primary_conninfo = 'host=(\S+) port", text)}
    for name in ("prometheus", "prometheus.compose", "prometheus.kubernetes"):
        for job in yaml.safe_load(bundle.by_path[f"prometheus/{name}.yml"].text)["scrape_configs"]:
            if job.get("scheme") == "https" and job["job_name"] == "qdrant":
                targets = job["static_configs"][0]["targets"]
                hosts |= {urlsplit(f"//{target}").hostname or "" for target in targets}
    return hosts
