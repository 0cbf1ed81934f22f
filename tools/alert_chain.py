"""A real Prometheus and Alertmanager with the rendered files, from a target that goes away to the webhook, and back.

alert_chain_files.py says what of the files is changed so that seconds on loopback are enough. Judged is the spec's own
alert on `up == 0`, by whatever name: a stand-in of the API is stopped, and the alert must reach the webhook with the
token; it is started again, and the alert's end must reach it too. Whether an alert fires too early, and which receivers
it reaches, is for `promtool-test-rules` and `amtool-routes`.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from synapse_ops.errors import DeadlineExceeded
from tools.alert_chain_files import (
    ALERTMANAGER,
    PROMETHEUS,
    RULES,
    ChainBroken,
    ChainFiles,
    WatchedAlert,
)
from tools.monitoring_servers import (
    MonitoringServer,
    StandIn,
    Webhook,
    alertmanager_command,
    get_json,
    instant,
    prometheus_command,
    wait_for,
)
from tools.program import serving, version_of
from tools.tool import ToolOutcome, ToolVerdict

_MALFORMED = "<error expanding template"  # what Prometheus writes in place of a text
STEP_LIMIT_S = 30.0  # the longest step takes 10 s on two quiet cores: Prometheus takes up targets every 5 s
_JUDGED = (str(PROMETHEUS), "prometheus/rules/alerts.yml", str(ALERTMANAGER))


@dataclass(frozen=True)
class AlertChain:
    """One run judges all three documents: only together do they do anything. step_limit_s: what a step may take."""

    name: str = "alert-chain"
    install: str = "apt-get install prometheus prometheus-alertmanager"
    opens: tuple[str, ...] = (str(PROMETHEUS), RULES, str(ALERTMANAGER))
    step_limit_s: float = STEP_LIMIT_S

    def applies(self, path: PurePosixPath, /) -> bool:
        return str(path) in _JUDGED

    def version(self) -> str | None:
        """Return the versions of Prometheus and Alertmanager; None where one of them is not installed."""
        versions = [version_of(program, ("--version",)) for program in ("prometheus", "prometheus-alertmanager")]
        return None if None in versions else "/".join(map(str, versions))

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        """Return one outcome for all. Whatever happens, no process and no file is left."""
        began_s = time.monotonic()
        verdict: ToolVerdict = "passed"
        findings: tuple[str, ...] = ()
        with tempfile.TemporaryDirectory(prefix="chain-", dir=directory.parent) as scratch:
            try:
                files = ChainFiles.read(directory)
                alert = files.plan()
                if isinstance(alert, WatchedAlert):
                    _run(files, alert, Path(scratch), _Patience(self.step_limit_s, began_s + timeout_s))
                else:
                    verdict, findings = "unjudged", (alert,)
            except ChainBroken as broken:
                verdict, findings = "failed", (str(broken).replace(f"{scratch}/", ""),)
            except DeadlineExceeded as late:
                verdict, findings = "timed-out", (late.message,)
            except OSError as error:
                verdict, findings = "absent", (f"it cannot be run here: {error}",)
        share_s = round((time.monotonic() - began_s) / len(documents), 3)
        outcome = ToolOutcome(self.name, self.version() or "unknown", verdict, findings, share_s)
        return dict.fromkeys(documents, outcome)


@dataclass(frozen=True, slots=True)
class _Patience:
    """step_limit_s: for each step. ends_s: of all, by the monotonic clock."""

    step_limit_s: float
    ends_s: float

    def has_come(self, condition: Callable[[], bool], *servers: MonitoringServer) -> bool:
        """Return whether it came within the limit of a step. Raises ChainBroken when a server ended meanwhile,
        DeadlineExceeded when the time for all is over.
        """
        limit_s = min(self.step_limit_s, self.ends_s - time.monotonic())
        wait_for(lambda: condition() or any(server.has_ended() for server in servers), limit_s)
        for server in servers:
            if server.has_ended():
                raise ChainBroken(f"{server.name} ended by itself: {server.complaint()}")
        if condition():
            return True
        if time.monotonic() >= self.ends_s:
            raise DeadlineExceeded("the alert chain did not come to a verdict in time")
        return False


def _run(files: ChainFiles, alert: WatchedAlert, scratch: Path, patience: _Patience) -> None:
    """Run the chain. Raises ChainBroken where it breaks, DeadlineExceeded, OSError when no server can be run here."""
    token = secrets.token_hex(16)
    with ExitStack() as stack:

        def started(name: str, command: tuple[str, ...]) -> MonitoringServer:
            log = scratch / f"{name}.log"
            server = MonitoringServer(name, stack.enter_context(serving(command, log)), log)
            if not patience.has_come(server.is_ready, server):
                raise DeadlineExceeded(f"{name} is not ready within {patience.step_limit_s:g} s")
            return server

        webhook = stack.enter_context(Webhook(token))
        api, others = stack.enter_context(StandIn()), stack.enter_context(StandIn())
        config = files.write_alertmanager(scratch, webhook_url=webhook.url, token=token)
        alertmanager = started("Alertmanager", alertmanager_command(config, scratch / "alertmanager-data", 0))
        config = files.write_prometheus(
            scratch,
            alert.job,
            watched=api.address,
            others=others.address,
            alertmanager=alertmanager.url.removeprefix("http://"),
        )
        prometheus = started("Prometheus", prometheus_command(config, scratch / "prometheus-data", 0))
        _Chain(alert, api, webhook, prometheus, alertmanager, patience).hold()


@dataclass(frozen=True, slots=True)
class _Chain:
    """All of it, running. api: the target that goes away."""

    alert: WatchedAlert
    api: StandIn
    webhook: Webhook
    prometheus: MonitoringServer
    alertmanager: MonitoringServer
    patience: _Patience

    def hold(self) -> None:
        """See the alert told, and its end. Raises ChainBroken where that does not come."""
        name, job, limit_s = self.alert.name, self.alert.job, self.patience.step_limit_s
        if not self._has_come(lambda: bool(instant(self.prometheus.url, f'up{{job="{job}"}} == 1'))):
            raise ChainBroken(f"Prometheus does not scrape the job {job} within {limit_s:g} s")
        self.api.stop()
        is_told = self._has_come(lambda: self._status() == "firing" or self._is_refused())
        if self._is_refused():
            raise ChainBroken(f"{name} reaches the webhook without the token")
        if not is_told:
            raise ChainBroken(f"{name} is not told within {limit_s:g} s of the end of the job {job}: {self._where()}")
        self._refuse_malformed_texts()
        self.api.start()
        if not self._has_come(lambda: self._status() == "resolved"):
            why = "it still fires" if self._fires() else "it fires no more, and the webhook is not told"
            raise ChainBroken(f"{name} does not resolve within {limit_s:g} s of the return of the job {job}: {why}")

    def _has_come(self, condition: Callable[[], bool]) -> bool:
        return self.patience.has_come(condition, self.prometheus, self.alertmanager)

    def _status(self) -> str:
        return self.webhook.last_status(self.alert.labels)

    def _is_refused(self) -> bool:
        return self.webhook.was_called_without_token(self.alert.labels)

    def _where(self) -> str:
        """Return how far the alert came."""
        if not self._fires():
            return "it does not fire"
        found = get_json(f"{self.alertmanager.url}/api/v2/alerts", filter=f'alertname="{self.alert.name}"')
        if not found:
            return f"it fires, and Alertmanager does not hear of it {self.prometheus.complaint()}".rstrip()
        return f"Alertmanager has it, and does not call the webhook {self.alertmanager.complaint()}".rstrip()

    def _fires(self) -> bool:
        labels = ",".join(f'{name}="{value}"' for name, value in self.alert.labels.items())
        return bool(instant(self.prometheus.url, f'ALERTS{{alertstate="firing",{labels}}}'))

    def _refuse_malformed_texts(self) -> None:
        told = self.webhook.last_told(self.alert.labels) or {}
        malformed = [name for name, text in told.get("annotations", {}).items() if _MALFORMED in text]
        if malformed:
            raise ChainBroken(
                f"{self.alert.name} is told without its {', '.join(malformed)}: the template has no value"
            )
