"""Specs that are unlike the default one, each in a way that has broken a renderer somewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "another namespace": {"kubernetes": {"namespace": "team-7", "monitoring_namespace": "observability"}},
    "stores elsewhere": {
        "database": {"host": "db.example.org"},
        "redis": {"host": "10.1.2.3"},
        "qdrant": {"host": "2001:db8::7", "tls": True, "api_key": "env:QDRANT_KEY"},
    },
    "stores in the cluster only": {
        "database": {"host": "db.example.org"},
        "redis": {"host": "cache.example.org"},
        "kubernetes": {"stores": {"database": "cluster", "redis": "elsewhere", "qdrant": "cluster"}},
    },
    "no autoscaling": {"autoscaling": None, "kubernetes": {"replicas": 5}},
    "two databases": {
        "database": {
            "name": "synapse",
            "databases": ["synapse", 'odd "name"'],
            "user": "o'neil",
            "replication_user": "a$(PGDATA)$$b",
        }
    },
    "IPv6 sources": {
        "firewall": {
            "inbound": [
                {"port": 80, "source": "::/0"},
                {"port": 443, "source": "2001:db8::/32"},
                {"port": 22, "source": "fd00::/8"},
            ]
        }
    },
    "forty rules": {"firewall": {"inbound": [{"port": 9000 + n, "source": f"10.{n}.0.0/16"} for n in range(40)]}},
    "other ports": {
        "server": {"port": 9443},
        "database": {"port": 6432},
        "redis": {"port": 16379},
        "qdrant": {"port": 16333},
        "kubernetes": {"service": {"port": 8080, "type": "NodePort"}},
        "watch": {"port": 19464},
    },
    "gateway": {
        "kubernetes": {
            "entry": {"kind": "gateway", "class_name": "envoy", "hosts": ["api.example.org", "*.example.net"]},
            "service": {"type": "ClusterIP"},
        }
    },
    "ingress with hosts": {"kubernetes": {"entry": {"hosts": ["api.example.org"], "class_name": "traefik"}}},
    "no entry": {"kubernetes": {"entry": {"kind": "none"}, "service": {"type": "ClusterIP"}}},
    "TLS 1.3 only": {"tls": {"min_version": "TLSv1.3", "cert_file": "/etc/my tls/a.crt"}},
    "long name": {"name": "s" + "y" * 61 + "n"},
    "locked stores": {
        "redis": {"password": "env:REDIS_PASSWORD"},
        "qdrant": {"api_key": "env:QDRANT_KEY", "tls": True},
        "failover": {"synchronous": "standby", "primary": "pg-1", "standby": "pg-2"},
    },
    "logs elsewhere": {
        "logging": {"elasticsearch": ["https://es-1.example.org:9243", "https://es-2.example.org"], "api_key": "env:ES"}
    },
    "no log chain": {"logging": {"elasticsearch": []}},
    "behind a proxy of the host": {
        "server": {"host": "127.0.0.1", "port": 8080},
        "backup": {"redis": {"schedule": "0 1 * * *"}},
        "database": {"nodes": {"db-primary": "localhost:5433", "db-standby": "localhost:5434"}},
    },
    "odd health": {"health": [{"name": "a", "url": "https://example.org/x"}]},
    "tight times": {
        "health": [{"name": "q", "url": "/it's?a=$(b)&c=%25", "interval": "1500ms", "timeout": "700ms"}],
        "server": {"timeout": "500ms", "keepalive": "1ms"},
        "updates": {"timeout": "3s"},
        "autoscaling": {"cooldown_period": "5h", "min_replicas": 1, "max_replicas": 1},
        "backup": {"database": {"wal_archiving": "off"}},
    },
    "small pods": {
        "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "1m", "memory": "1Mi"}},
        "kubernetes": {"pull_secret": "registry", "storage": {"class_name": "fast", "database": "1Gi"}},
    },
    "named nodes": {"database": {"nodes": {"db-primary": "10.0.0.7:5433", "db-standby": "[2001:db8::8]:5432"}}},
    "a managed database": {
        "database": {"host": "db.example.org", "user": "app"},
        "failover": {"standby": None},
        "backup": {"database": {"wal_archiving": "off"}},
    },
    "one node": {"failover": {"standby": None, "primary": "pg-1"}},
    "two database hosts": {
        "database": {
            "host": "10.0.0.7",
            "port": 5433,
            "nodes": {"db-primary": "10.0.0.7:5433", "db-standby": "10.0.0.8:5432"},
        },
        "failover": {"manager": "external"},
    },
    "digests": {
        "docker": {"base_image": "python@sha256:" + "a" * 64},
        "kubernetes": {"image": "registry.example.org/synapse-api@sha256:" + "b" * 64},
    },
}


def spec_of(name: str) -> Spec:
    """Return a valid spec: the default one with one of the changes."""
    loaded, faults = check_text(json.dumps(CHANGES[name] or {"name": "synapse"}), Path("spec.yaml"))
    assert loaded is not None, faults
    return loaded.spec
