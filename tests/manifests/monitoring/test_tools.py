"""The programs that will read the rendered files take them, and every alert was seen firing, waiting and resolving.

They need Debian's prometheus, prometheus-alertmanager, prometheus-blackbox-exporter and logrotate: `make test` leaves
them to `make prove-monitoring`, which installs these and fails where one is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.manifests.monitoring.monitoring_specs import SPECS
from tests.manifests.monitoring.test_gates import render, spec_of

pytestmark = pytest.mark.skipif("SYNAPSE_PROVE" not in os.environ, reason="make prove-monitoring runs it")
TIMEOUT_S = 120.0


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed")
    return found


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(params=SPECS)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the rendered files of one spec."""
    for document in render(spec_of(SPECS[request.param])):
        target = tmp_path / document.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(document.data)
    return tmp_path


def test_prometheus_takes_its_files(release: Path) -> None:
    """Without a warning: a duplicate rule is a fault, too."""
    promtool = program("promtool")

    for name in ("prometheus", "prometheus.compose"):
        path = release / f"prometheus/{name}.yml"
        whole = [] if "credentials_file" not in path.read_text() else ["--syntax-only"]  # it wants to see secrets
        done = run(promtool, "check", "config", *whole, str(path))
        assert done.returncode == 0, done.stdout + done.stderr
    rules = [str(path) for path in (release / "prometheus/rules").iterdir()]
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_waits_and_resolves(release: Path) -> None:
    """The tests are rendered with the rules, for any spec."""
    done = run(program("promtool"), "test", "rules", str(release / "prometheus/tests/alerts.yml"))

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_wrong_fails_its_rendered_test(tmp_path: Path) -> None:
    """A test that cannot fail proves nothing: another threshold and a longer wait are seen."""
    promtool = program("promtool")
    for document in render(spec_of("name: synapse\n")):
        target = tmp_path / document.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(document.data)
    rules = tmp_path / "prometheus/rules/alerts.yml"
    good = rules.read_text()

    for old, new in (
        ("up == 0", "up == 2"),
        ('for: "1m"', 'for: "3m"'),
        ("> 1048576", "> 1048575"),
        ("> 93600", "> 1e9"),
    ):
        assert old in good
        rules.write_text(good.replace(old, new))
        assert run(promtool, "test", "rules", str(tmp_path / "prometheus/tests/alerts.yml")).returncode == 1, old


def test_alertmanager_takes_its_file_and_routes_as_the_table_says(release: Path) -> None:
    """Each alert of the table reaches exactly the receivers that it names."""
    amtool = program("amtool")
    table = (release / "alertmanager/tests/routes.tsv").read_text().splitlines()

    for name in ("alertmanager", "alertmanager.compose"):
        path = str(release / f"alertmanager/{name}.yml")
        assert run(amtool, "check-config", path).returncode == 0
        for row in table:
            if not row.startswith("#"):
                receivers, labels = row.split("\t")
                verify = [f"--config.file={path}", f"--verify.receivers={receivers}"]
                done = run(amtool, "config", "routes", "test", *verify, *labels.split())
                assert done.returncode == 0, (row, done.stdout)


def test_the_blackbox_exporter_takes_its_file(release: Path) -> None:
    exporter = program("prometheus-blackbox-exporter")

    done = run(exporter, "--config.check", f"--config.file={release / 'prometheus/blackbox.yml'}")

    assert done.returncode == 0, done.stderr


def test_logrotate_takes_its_file(release: Path) -> None:
    """logrotate exits 0 whatever it finds, so its words count."""
    rules = release / "hosts/logrotate.conf"
    rules.chmod(0o644)

    done = run(program("logrotate"), "-d", str(rules))

    assert "error:" not in done.stderr, done.stderr
