"""From the rendered files to the call: what the driver of `alert-chain` watches, changes, sees, and leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.monitoring.alert_rules import render_alert_rules
from synapse_ops.manifests.monitoring.alertmanager import render_alertmanager
from synapse_ops.manifests.monitoring.prometheus import render_prometheus
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from tests.manifests.monitoring.monitoring_specs import SPECS
from tests.manifests.specs import CHANGES, spec_of
from tests.tools.test_tools import changed
from tools.alert_chain import AlertChain
from tools.alert_chain_files import (
    ChainFiles,
    WatchedAlert,
    staged_alertmanager,
    staged_prometheus,
    staged_rules,
)
from tools.tool import ToolOutcome

TOOL = AlertChain()
IMPATIENT = replace(TOOL, step_limit_s=15.0)  # Prometheus takes up its targets within 10 s
CHAIN_TIMEOUT_S = 200.0
CUT_S = 4.0  # Prometheus has no target before 5
GONE_TIMEOUT_S = 10.0
AT_ONCE = 4

WATCHED = {
    "alerts: [{name: away, condition: up != 1}]": WatchedAlert("away", "api"),
    "alerts: [{name: mild, condition: up < 1}, {name: grave, condition: up == 0, severity: critical}]": WatchedAlert(
        "grave", "api"
    ),
    "alerts: [{name: back, condition: up == 1}]": "the spec has no alert on up == 0",
    "alerts: []": "the spec has no alert on up == 0",
    "alerting: {actions: {service_down: none}}": "the spec tells nobody of service_down (alerting.actions)",
    "prometheus: {targets: {api: []}}": WatchedAlert("service_down", "worker"),
    "prometheus: {targets: {alertmanager: []}}": "the spec has no Alertmanager that is told (prometheus.targets)",
}
# the keys whose values may differ
CHANGED = {
    "scrape_interval", "scrape_timeout", "evaluation_interval", "targets", "replacement", "scheme", "tls_config",
    "authorization", "for", "group_wait", "group_interval", "url", "credentials_file",
}  # fmt: skip
TWINS = {
    "Prometheus drops it": ("prometheus/prometheus.yml", b"regex: none", b"regex: notify", "does not hear of it"),
    "no rules": ("prometheus/prometheus.yml", b"rules/*.yml", b"rule/*.yml", "it does not fire"),
    "another token": (
        "alertmanager/alertmanager.yml",
        b"credentials_file: /run/secrets/webhook-token",
        b"credentials: another",
        "without the token",
    ),
    "end untold": (
        "alertmanager/alertmanager.yml",
        b"send_resolved: true",
        b"send_resolved: false",
        "does not resolve",
    ),
    "text without a value": (
        "prometheus/rules/alerts.yml",
        b"up of job {{ $labels.job }}",
        b"up of job {{ $labels.job | humanize }}",
        "without its summary",
    ),
    "no such receiver": ("alertmanager/alertmanager.yml", b"receiver: failover", b"receiver: nobody", "nobody"),
    "no file": ("alertmanager/alertmanager.yml", b"route:", b"route: [", "not of the form"),
}


def checked(text: str) -> Spec:
    loaded, faults = check_text(f"name: synapse\n{text}\n", Path("spec.yaml"))
    assert loaded is not None, faults
    return loaded.spec


def written(spec: Spec, directory: Path) -> Path:
    for document in (*render_prometheus(spec), *render_alert_rules(spec), *render_alertmanager(spec)):
        path = directory / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.data)
    return directory


@pytest.mark.parametrize("text", WATCHED)
def test_the_gravest_alert_on_a_target_that_is_gone_is_watched(text: str, tmp_path: Path) -> None:
    """By its condition, not its name. Where the spec promises nothing, the reason is said."""
    assert ChainFiles.read(written(checked(text), tmp_path)).plan() == WATCHED[text]


@pytest.mark.parametrize("text", SPECS.values(), ids=SPECS)
def test_only_times_addresses_and_access_are_changed(text: str, tmp_path: Path) -> None:
    """What is run is what was rendered, but for the list at the head of alert_chain_files.py."""
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    files = ChainFiles.read(written(loaded.spec, tmp_path))

    addresses = {"watched": "127.0.0.1:1", "others": "127.0.0.1:2", "alertmanager": "127.0.0.1:3"}
    pairs = [
        (files.prometheus, staged_prometheus(files.prometheus, "api", **addresses)),
        (
            files.alertmanager,
            staged_alertmanager(files.alertmanager, webhook_url="http://127.0.0.1:4", token_file="/t"),
        ),
        *((rules, staged_rules(rules)) for rules in files.rules.values()),
    ]

    differences = [found for before, after in pairs for found in differing(before, after, ())]
    assert {path[-1] for path, _ in differences} <= CHANGED
    told = [value for path, value in differences if path[-1] in ("targets", "replacement", "url")]
    assert told
    assert all("127.0.0.1" in str(value) for value in told)
    assert len({str(value) for path, value in differences if path[-1] == "targets"}) == 3


def differing(before: object, after: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield where two documents differ, with the new value; what stands in lists has the path of the list."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from differing(before.get(key), after.get(key), (*path, str(key)))
    elif isinstance(before, list) and isinstance(after, list) and path[-1] != "targets":
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            yield from differing(one, other, path)
    elif before != after:
        yield path, after


def run_chain(bundle: Bundle, folder: Path, tool: AlertChain = TOOL, timeout_s: float = CHAIN_TIMEOUT_S) -> ToolOutcome:
    """Return the one outcome; no file of it may be left in the folder."""
    folder.mkdir()
    write_directory(bundle, folder / "release")
    documents = tuple(document.path for document in bundle.documents if tool.applies(document.path))
    outcomes = tool.check(folder / "release", documents, timeout_s)
    assert set(outcomes) == set(documents)
    assert [path.name for path in folder.iterdir()] == ["release"]
    [outcome] = set(outcomes.values())
    return outcome


def programs_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.name().startswith("prometheus")]


@pytest.mark.tools
@pytest.mark.timeout(600)
def test_the_chain_holds_in_every_shape_of_the_stack(tmp_path: Path) -> None:
    """A few at once: a run mostly waits. Those whose files are the same are run once."""
    if TOOL.version() is None:
        pytest.skip(f"not installed: {TOOL.install}")
    bundles = {name: render_bundle(spec_of(name)) for name in CHANGES}
    bundles |= {
        "another alert": render_bundle(checked("alerts: [{name: away, condition: up != 1, duration: 0s}]")),
        "an alert for failover": render_bundle(checked("alerting: {actions: {service_down: failover}}")),
        "a heartbeat": render_bundle(checked("alerting: {heartbeat_url: 'https://beat.example.org/x'}")),
        "an API behind TLS": render_bundle(checked("health_base_url: https://api.example.org")),
        "no API": render_bundle(checked("prometheus: {targets: {api: []}}")),
    }
    distinct = {
        tuple(one.digest for one in bundle.documents if any(one.path.match(glob) for glob in TOOL.opens)): name
        for name, bundle in bundles.items()
    }

    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = list(distinct.values())
        outcomes = pool.map(lambda name: run_chain(bundles[name], tmp_path / name), names)

        assert {name: one for name, one in zip(names, outcomes, strict=True) if one.verdict != "passed"} == {}
    assert programs_of(psutil.Process()) == []


@pytest.mark.tools
@pytest.mark.timeout(600)
def test_a_chain_that_breaks_says_where(tmp_path: Path) -> None:
    """Each twin at another place; none leaves a process."""
    if TOOL.version() is None:
        pytest.skip(f"not installed: {TOOL.install}")
    bundle = render_bundle(spec_of("default"))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        twins = [changed(bundle, *twin[:3]) for twin in TWINS.values()]
        outcomes = list(pool.map(lambda n: run_chain(twins[n], tmp_path / str(n), IMPATIENT), range(len(twins))))

    for (name, (*_, words)), outcome in zip(TWINS.items(), outcomes, strict=True):
        assert (name, outcome.verdict) == (name, "failed")
        assert words in outcome.findings[0]
    assert programs_of(psutil.Process()) == []


def test_spec_without_the_alert_has_no_chain_to_prove(tmp_path: Path) -> None:
    """Not judged, with the reason: that is not a pass. Nothing is started for that."""
    bundle = render_bundle(checked("alerts: []"))

    outcome = run_chain(bundle, tmp_path / "none")

    assert (outcome.verdict, outcome.findings) == ("unjudged", ("the spec has no alert on up == 0",))


@pytest.mark.tools
def test_chain_that_is_cut_short_is_no_verdict_and_leaves_nothing(tmp_path: Path) -> None:
    """Its time is the caller's: it ends in the middle, with both programs running."""
    if TOOL.version() is None:
        pytest.skip(f"not installed: {TOOL.install}")

    outcome = run_chain(render_bundle(spec_of("default")), tmp_path / "cut", timeout_s=CUT_S)

    assert outcome.verdict == "timed-out"
    assert programs_of(psutil.Process()) == []


@pytest.mark.tools
def test_programs_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL asks nobody: the kernel ends what it started."""
    if TOOL.version() is None:
        pytest.skip(f"not installed: {TOOL.install}")
    bundle = render_bundle(spec_of("default"))
    write_directory(bundle, tmp_path / "release")
    code = (
        "import sys; from pathlib import Path; from tools.alert_chain import AlertChain\n"
        "AlertChain().check(Path(sys.argv[1]), (Path('alertmanager/alertmanager.yml'),), 100)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "release")])
    try:
        ends_s = time.monotonic() + CHAIN_TIMEOUT_S
        while len(programs := programs_of(psutil.Process(driver.pid))) < 2:
            assert driver.poll() is None
            assert time.monotonic() < ends_s
            time.sleep(0.05)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(10)

    _, alive = psutil.wait_procs(programs, GONE_TIMEOUT_S)
    assert alive == []
