"""The WAL receiver in containers and on hosts: the rendered command line, spec and settings work."""

from __future__ import annotations

import configparser
import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops.errors import ConfigError
from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.operations.database.wal_writer import read_digest_key
from synapse_ops.services.wal_receiver.metrics import serve
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports
from tests.manifests.consistency.metrics import METRICS

START_LIMIT_S = 60.0
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


def spec_with(**blocks: Any) -> Spec:
    loaded, faults = check_text(json.dumps({"name": "synapse"} | blocks), Path("spec.yaml"))
    assert loaded is not None, faults
    return loaded.spec


def deployment_of(bundle: Bundle) -> dict[str, Any]:
    objects = yaml.load_all(bundle.by_path["kubernetes/44-wal-receiver.yaml"].text, yaml.CSafeLoader)
    [found] = [each for each in objects if each["kind"] == "Deployment"]
    container: dict[str, Any] = found["spec"]["template"]["spec"]["containers"][0]
    return container


def test_a_receiver_with_the_rendered_spec_lives_while_the_database_is_away(tmp_path: Path) -> None:
    """What the engine and the kubelet ask for is answered, though nothing can be stored: `/health` says so, and only
    who decides on traffic asks for it.
    """
    bundle = render_bundle(spec_with())
    service = yaml.load(bundle.by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]["wal-receiver"]
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(bundle.by_path["docker/wal-receiver/infrastructure.yaml"].text)
    [port] = free_ports(1)
    command = [*service["command"]]
    command[command.index("--spec") + 1] = str(spec)
    command[command.index("--state-dir") + 1] = str(tmp_path / "state")
    assert command[command.index("--port") + 1] == "9110"
    command[command.index("--port") + 1] = str(port)
    test = [part.replace("$$", "$").replace("9110", str(port)) for part in service["healthcheck"]["test"]]

    receiver = subprocess.Popen([sys.executable, *command])
    try:
        ends = time.monotonic() + START_LIMIT_S
        while subprocess.run([sys.executable, *test[2:]], capture_output=True, timeout=30, check=False).returncode:
            assert time.monotonic() < ends
            assert receiver.poll() is None
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30)
        told = json.load(refused.value)
    finally:
        receiver.terminate()
        receiver.wait(30)

    assert refused.value.code == 503
    assert not told["healthy"]


def test_what_alerts_and_panels_ask_of_the_receiver_is_served() -> None:
    server = serve(Standing(gap_at_s=1.0), "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics", timeout=30) as reply:
            served = {line.split()[0] for line in reply.read().decode().splitlines() if not line.startswith("#")}
    finally:
        server.shutdown()

    assert {metric for metric, source in METRICS.items() if source == "wal"} <= served


def test_the_cluster_keeps_the_key_by_which_encrypted_wal_is_compared(tmp_path: Path) -> None:
    """Each rollout begins with an empty directory. With a new key what a clone would go on with is believed."""
    bundle = render_bundle(spec_with(encryption={"recipients": [RECIPIENT], "identity": "file:/etc/age.key"}))
    arguments = deployment_of(bundle)["args"]
    told = yaml.load(bundle.by_path["docker/wal-receiver/infrastructure.yaml"].text, yaml.CSafeLoader)

    assert arguments[arguments.index("--digest-key") + 1] == "/run/secrets/wal-digest-key"
    assert "--from-file=wal-digest-key" in bundle.by_path["kubernetes/secrets.txt"].text
    assert "--digest-key" not in deployment_of(render_bundle(spec_with()))["args"]
    assert (told["encryption"]["recipients"], told["encryption"]["identity"]) == ([RECIPIENT], None)

    key = tmp_path / "key"
    with pytest.raises(ConfigError, match="could not read"):
        read_digest_key(tmp_path / "own", given=key)
    key.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes, at least 32"):
        read_digest_key(tmp_path / "own", given=key)
    key.write_bytes(bytes(range(32)))
    assert read_digest_key(tmp_path / "own", given=key).secret == bytes(range(32))
    assert not (tmp_path / "own").exists()


def test_a_receiver_with_a_role_of_its_own_has_no_superuser_s_password() -> None:
    bundle = render_bundle(spec_with(database={"replication": "env:SYNAPSE_REPLICATION_DSN"}))
    services = yaml.load(bundle.by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]
    told = yaml.load(bundle.by_path["docker/wal-receiver/infrastructure.yaml"].text, yaml.CSafeLoader)

    assert "database-admin-url" not in services["wal-receiver"]["secrets"]
    assert "database-replication-url" in services["wal-receiver"]["secrets"]
    assert told["database"]["replication"] == "file:/run/secrets/database-replication-url"
    assert "database-replication-url" in services["synapse-ops"]["secrets"]  # it asks how far WAL is stored


def test_the_unit_starts_the_receiver_as_it_is_called_and_for_ever() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(render_bundle(spec_with()).by_path["hosts/synapse-ops-wal.service"].text.replace("\\\n", ""))
    service = unit["Service"]
    argv = shlex.split(service["ExecStart"])
    asked = subprocess.run(
        [sys.executable, *argv[1:3], "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout

    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert int(service["TimeoutStopSec"]) > 10
    assert [option for option in argv if option.startswith("--") and option not in asked] == []
