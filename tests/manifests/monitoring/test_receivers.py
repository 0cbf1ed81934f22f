"""People are told by Alertmanager's own receivers, whose secrets are files, or it is noted that nobody is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.consistency import check_consistency
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec.loading import check_text

RECEIVERS: dict[str, Any] = {
    "mail": {
        "to": "ops@example.org",
        "sender": "synapse@example.org",
        "server": "smtp.example.org:587",
        "user": "synapse",
        "password": "file:/etc/synapse/mail",
    },
    "slack": {"channel": "#ops", "webhook": "file:/etc/synapse/slack"},
    "pagerduty": {"routing_key": "env:PAGERDUTY"},
}


def bundle_with(alerting: dict[str, Any]) -> tuple[Bundle, list[str]]:
    """Return the documents, and the rules that found something in them."""
    loaded, faults = check_text(json.dumps({"alerting": alerting}), Path("spec.yaml"))
    assert loaded is not None, faults
    bundle = render_bundle(loaded.spec)
    return bundle, [found.rule for found in check_consistency(bundle, loaded.spec)]


def test_people_are_told_by_receivers_that_alertmanager_knows(tmp_path: Path) -> None:
    """In compose it is given each secret that its file names, and a way out. amtool takes the file."""
    bundle, _ = bundle_with(RECEIVERS)
    told = yaml.load(bundle.by_path["alertmanager/alertmanager.compose.yml"].text, yaml.CSafeLoader)
    people = next(each for each in told["receivers"] if each["name"] == "notify")
    compose = yaml.load(bundle.by_path["docker/compose.yaml"].text, yaml.CSafeLoader)
    service = compose["services"]["alertmanager"]
    files = {
        people["email_configs"][0]["auth_password_file"],
        people["slack_configs"][0]["api_url_file"],
        people["pagerduty_configs"][0]["routing_key_file"],
    }

    assert files < {f"/run/secrets/{name}" for name in service["secrets"]}
    assert set(service["secrets"]) <= set(compose["secrets"])
    assert "outside" in service["networks"]
    assert "/etc/synapse/mail" in bundle.by_path["alertmanager/alertmanager.yml"].text
    if shutil.which("amtool") is not None:
        write_directory(bundle, tmp_path / "release")
        for place in ("", ".compose", ".kubernetes"):
            path = tmp_path / "release" / "alertmanager" / f"alertmanager{place}.yml"
            done = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*RECEIVERS, "webhook_url"])
def test_it_is_noted_when_nobody_is_told(name: str) -> None:
    _, silent = bundle_with({})
    _, heard = bundle_with({name: RECEIVERS.get(name, "https://hooks.example.org/x")})

    assert "somebody_is_told" in silent
    assert "somebody_is_told" not in heard
