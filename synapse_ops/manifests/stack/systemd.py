"""The WAL receiver on a host without containers, as a unit of systemd.

It is started again whatever ended it, without a limit: an outage that outlasts a limit of starts would leave it off.
"""

from __future__ import annotations

from synapse_ops.manifests.stack.container_spec import SPEC_DIR, SPEC_FILE
from synapse_ops.manifests.stack.wal_receiver import GRACE_S
from synapse_ops.spec.fixed import WAL_METRICS_PORT

UNIT_PATH = "hosts/synapse-ops-wal.service"


def wal_receiver_unit() -> str:
    """Return the unit. Secrets that the spec refers to by `env:` come from a file that only root reads."""
    return f"""\
# Before: adduser --system --group synapse-ops; the package in a venv at /opt/synapse-ops; the spec where it is read.
# Then this file into /etc/systemd/system, and: systemctl enable --now synapse-ops-wal
[Unit]
Description=WAL of PostgreSQL into the repository of Synapse Ops
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User=synapse-ops
EnvironmentFile=-/etc/synapse/secrets.env
StateDirectory=synapse-ops
StateDirectoryMode=0750
ExecStart=/opt/synapse-ops/bin/python -m synapse_ops.services.wal_receiver --spec {SPEC_DIR}/{SPEC_FILE} \\
  --state-dir %S/synapse-ops --port {WAL_METRICS_PORT}
Restart=always
RestartSec=1
TimeoutStopSec={GRACE_S}
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""
