"""The programs of Debian's packages: what each is asked about which documents."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from synapse_ops.systems.manifest_tools.program import Program

_PROMETHEUS = "apt-get install prometheus"
_ALERTMANAGER = "apt-get install prometheus-alertmanager"
_ROUTES = "alertmanager/tests/routes.tsv"


def _whole_config(directory: Path, path: PurePosixPath) -> list[list[str]]:
    """Return the check of a configuration; of its syntax only where it names credentials, which promtool would open."""
    has_credentials = "credentials_file" in (directory / path).read_text(encoding="utf-8")
    return [["check", "config", *(["--syntax-only"] if has_credentials else []), str(path)]]


def _routes(directory: Path, path: PurePosixPath) -> list[list[str]]:
    """Return one routing question a row of the rendered table."""
    rows = [line.split("\t") for line in (directory / _ROUTES).read_text(encoding="utf-8").splitlines()]
    return [
        ["config", "routes", "test", f"--config.file={path}", f"--verify.receivers={row[0]}", *row[1].split()]
        for row in rows
        if not row[0].startswith("#")
    ]


PROGRAMS: tuple[Program, ...] = (
    Program(
        "promtool-check-config",
        "promtool",
        ("prometheus/prometheus.yml", "prometheus/compose.yml"),
        _whole_config,
        _PROMETHEUS,
    ),
    Program(
        "promtool-check-rules",
        "promtool",
        ("prometheus/rules/*.yml",),
        lambda _, path: [["check", "rules", "--lint=all", "--lint-fatal", str(path)]],
        _PROMETHEUS,
    ),
    Program(
        "promtool-test-rules",
        "promtool",
        ("prometheus/rules/alerts.yml", "prometheus/tests/alerts.yml"),
        lambda _directory, _path: [["test", "rules", "prometheus/tests/alerts.yml"]],
        _PROMETHEUS,
    ),
    Program(
        "amtool-check-config",
        "amtool",
        ("alertmanager/*.yml",),
        lambda _, path: [["check-config", str(path)]],
        _ALERTMANAGER,
    ),
    Program("amtool-routes", "amtool", ("alertmanager/*.yml",), _routes, _ALERTMANAGER),
    Program(
        "blackbox-exporter",
        "prometheus-blackbox-exporter",
        ("prometheus/blackbox.yml",),
        lambda _, path: [["--config.check", f"--config.file={path}"]],
        "apt-get install prometheus-blackbox-exporter",
    ),
    Program(
        "nft",
        "nft",
        ("firewall/nftables.conf",),
        lambda _, path: [["-c", "-f", str(path)]],
        "apt-get install nftables",
        prefix=() if os.geteuid() == 0 else ("unshare", "-rn"),  # root of a network of its own: nft asks for that
    ),
    Program(
        "logrotate",
        "logrotate",
        ("hosts/logrotate.conf",),
        lambda _, path: [["-d", str(path)]],
        "apt-get install logrotate",
        complaint="error:",  # it exits with 0 whatever it finds
    ),
)
