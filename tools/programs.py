"""The programs that judge a document's form: what each is asked about which documents."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

from tools import custom_resources, kubernetes_models, packets
from tools.program import Program

_PROMETHEUS = "apt-get install prometheus"
_ALERTMANAGER = "apt-get install prometheus-alertmanager"
_PACKAGED = "sh requirements/manifest-tools"
_RULES = ("prometheus/rules/*.yml",)
_ROUTES = "alertmanager/tests/routes.tsv"
_REDIS_FOR_A_SECOND = (
    'grep -v "^dir " "$2" | timeout --preserve-status --signal=TERM 1 '
    '"$1" - --port 0 --unixsocket ../redis.sock --appendonly no --save ""'
)
_PACKETS = "firewall/tests/packets.tsv"
# root of a network of its own: nft asks for that
_NAMESPACE = ("--net",) if os.geteuid() == 0 else ("--net", "--map-root-user")


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
        ("prometheus/prometheus.yml", "prometheus/prometheus.compose.yml", "prometheus/prometheus.kubernetes.yml"),
        _whole_config,
        _PROMETHEUS,
        opens=_RULES,
    ),
    Program(
        "promtool-check-rules",
        "promtool",
        _RULES,
        lambda _, path: [["check", "rules", "--lint=all", "--lint-fatal", str(path)]],
        _PROMETHEUS,
    ),
    Program(
        "promtool-test-rules",
        "promtool",
        ("prometheus/rules/alerts.yml", "prometheus/tests/alerts.yml"),
        lambda _directory, _path: [["test", "rules", "prometheus/tests/alerts.yml"]],
        _PROMETHEUS,
        opens=(*_RULES, "prometheus/tests/alerts.yml"),
    ),
    Program(
        "amtool-check-config",
        "amtool",
        ("alertmanager/*.yml",),
        lambda _, path: [["check-config", str(path)]],
        _ALERTMANAGER,
    ),
    Program("amtool-routes", "amtool", ("alertmanager/*.yml",), _routes, _ALERTMANAGER, opens=(_ROUTES,)),
    Program(
        "blackbox-exporter",
        "prometheus-blackbox-exporter",
        ("prometheus/blackbox.yml",),
        lambda _, path: [["--config.check", f"--config.file={path}"]],
        "apt-get install prometheus-blackbox-exporter",
    ),
    Program(  # the server itself, which ends with 0 when it had started; its directory is the container's own
        "redis-server",
        "redis-server",
        ("redis/redis.conf",),
        lambda _, path: [[str(path)]],
        "apt-get install redis-server",
        prefix=("sh", "-euc", _REDIS_FOR_A_SECOND, "sh"),
    ),
    Program(
        "nft",
        "nft",
        ("firewall/nftables.conf",),
        lambda _, path: [["-c", "-f", str(path)]],
        "apt-get install nftables",
        prefix=() if os.geteuid() == 0 else ("unshare", *_NAMESPACE),
    ),
    Program(
        "nft-packets",
        "unshare",
        ("firewall/nftables.conf", _PACKETS),
        lambda _directory, _path: [
            [*_NAMESPACE, sys.executable, "-I", packets.__file__, "firewall/nftables.conf", _PACKETS]
        ],
        "apt-get install nftables iproute2 util-linux",
        version_arguments=(*_NAMESPACE, "nft", "--version"),
        opens=("firewall/nftables.conf", _PACKETS),
        unjudged_status=packets.UNJUDGED_STATUS,
    ),
    Program(
        "logrotate",
        "logrotate",
        ("hosts/logrotate.conf",),
        lambda _, path: [["-d", str(path)]],
        "apt-get install logrotate",
        complaint="error:",  # it exits with 0 whatever it finds
    ),
    Program(
        "hadolint",
        "hadolint",
        ("docker/Dockerfile",),
        lambda _, path: [["--failure-threshold", "info", str(path)]],
        _PACKAGED,
    ),
    Program(
        "docker-compose",
        "docker-compose",
        ("docker/compose.yaml",),
        lambda _, path: [["--file", str(path), "config", "--quiet"]],
        _PACKAGED,
        version_arguments=("version",),
    ),
    Program(
        "kubernetes-models",
        "kubernetes-models-python",
        ("kubernetes/[0-4]*.yaml", "kubernetes/50-entry.yaml"),  # a Gateway is no built-in kind
        lambda _, path: [[kubernetes_models.__file__, str(path)]],
        _PACKAGED,
        version_arguments=("-c", "import kubernetes; print(kubernetes.__version__)"),
        unjudged_status=kubernetes_models.UNJUDGED_STATUS,
    ),
    Program(
        "gateway-definitions",
        "gateway-definitions",
        ("kubernetes/50-gateway.yaml",),
        lambda _, path: [[custom_resources.__file__, str(path)]],
        f"{_PACKAGED}, with go on PATH",
    ),
    Program("amlint", "amlint", ("alertmanager/*.yml",), lambda _, path: [["check", str(path)]], _PACKAGED),
    Program(
        "yamllint",
        "yamllint",
        ("*.yml", "*.yaml"),
        lambda _, path: [["--strict", "-d", "{extends: relaxed, rules: {line-length: disable}}", str(path)]],
        _PACKAGED,
    ),
)
