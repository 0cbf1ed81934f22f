"""deploy/kubernetes on the real node, beside the stack that it serves, and the UI as a browser asks it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import control_plane
from tests.cluster.control_plane import Object, is_ready
from tests.cluster.stack import Stack

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
AVAILABLE_TIMEOUT_S = 300
RUN_TIMEOUT_S = 240.0
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
until = partial(control_plane.until, refused=(httpx.TransportError, AssertionError))  # what is being replaced refuses
_ADDRESS = "localhost:3000"  # what `kubectl port-forward deployment/dagster-webserver 3000` gives a browser
_LAUNCH = """mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
_RUN = """query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status startTime endTime
  tags { key value } } } }"""
_EVENTS = """query Events($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
  events { __typename ... on MessageEvent { message timestamp } } hasMore } } }"""
_CAPTURED = """query Captured($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
  events { ... on LogsCapturedEvent { fileKey } } } } }"""
_OUTPUT = "query Output($key: [String!]!) { capturedLogs(logKey: $key) { stderr } }"
_REPOSITORY = '{repositoryLocationName: "synapse_ops", repositoryName: "__repository__"}'
_STATE = "{ status ticks(limit: 1) { timestamp status } }"
_TICKS = f"""{{
  sensorsOrError(repositorySelector: {_REPOSITORY}) {{ ... on Sensors {{ results {{ name sensorState {_STATE} }} }} }}
  schedulesOrError(repositorySelector: {_REPOSITORY}) {{
    ... on Schedules {{ results {{ name scheduleState {_STATE} }} }} }}
  instance {{ daemonHealth {{ allDaemonStatuses {{ daemonType healthy }} }} }} }}"""
EVERY_MINUTE, EVERY_30_S = "cleanup_plan_schedule", "health_sensor"  # the first as the spec of the tests has it


@dataclass(frozen=True)
class Deployment:
    """ui: a session that a one-time URL opened."""

    stack: Stack
    ui: httpx.Client

    @property
    def namespace(self) -> str:
        return self.stack.namespace

    def kubectl(self, *arguments: str | Path) -> str:
        return self.stack.applied.kubectl(*arguments)

    def ask(self, query: str, **variables: Any) -> Any:
        """Return the data of a GraphQL query, asked as the UI's page asks."""
        reply = self.ui.post("/graphql", json={"query": query, "variables": variables})
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert not found.get("errors"), found
        return found["data"]

    def launch(self, job: str, partition: str | None = None) -> str:
        """Launch a job as the launchpad does, and return the run's id."""
        selector = {
            "repositoryLocationName": "synapse_ops",
            "repositoryName": "__repository__",
            "jobName": job,
        }
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {"selector": selector, "executionMetadata": {"tags": tags}, "runConfigData": {}, "mode": "default"}
        answer = self.ask(_LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def run(self, run_id: str) -> Any:
        return self.ask(_RUN, id=run_id)["runOrError"]

    def status(self, run_id: str) -> str:
        return str(self.run(run_id)["status"])

    def messages(self, run_id: str) -> list[str]:
        """Return what the events of a run say, from the first."""
        found = self.ask(_EVENTS, id=run_id)["logsForRun"]
        assert "events" in found, "the storage does not answer"
        return [event.get("message") or event["__typename"] for event in found["events"]]

    def output(self, run_id: str) -> str:
        """Return what a run wrote to standard error, as the UI shows it."""
        captured = self.ask(_CAPTURED, id=run_id)["logsForRun"]["events"]
        [key] = {event["fileKey"] for event in captured if event}
        return str(self.ask(_OUTPUT, key=[run_id, "compute_logs", key])["capturedLogs"]["stderr"])

    def silent(self, since_s: float) -> set[str]:
        """Return which of a schedule, a sensor and the daemons have not done their work since then."""
        found = self.ask(_TICKS)
        states = {each["name"]: each["sensorState"] for each in found["sensorsOrError"]["results"]}
        states |= {each["name"]: each["scheduleState"] for each in found["schedulesOrError"]["results"]}
        well = {
            name
            for name in (EVERY_MINUTE, EVERY_30_S)
            for tick in states[name]["ticks"]
            if tick["timestamp"] > since_s and tick["status"] in {"SUCCESS", "SKIPPED"}
        }
        daemons = found["instance"]["daemonHealth"]["allDaemonStatuses"]
        return {EVERY_MINUTE, EVERY_30_S} - well | {each["daemonType"] for each in daemons if not each["healthy"]}

    def await_end(self, run_id: str, *, timeout_s: float = RUN_TIMEOUT_S) -> str:
        until(lambda: self.status(run_id) in ENDED, lambda: self._described(run_id), timeout_s=timeout_s)
        return self.status(run_id)

    def _described(self, run_id: str) -> str:
        pods = self.kubectl("get", "pods", "--output=wide")
        return f"{self.status(run_id)}\n{pods}\n" + "\n".join(self.messages(run_id)[-20:])

    def pod_of(self, run_id: str) -> Object:
        """Return the pod of a run, as soon as there is one that runs."""
        found: list[Object] = []

        def is_running() -> bool:
            answer = self.stack.node.plane.api.get(
                f"/api/v1/namespaces/{self.namespace}/pods", params={"labelSelector": f"dagster/run-id={run_id}"}
            )
            found[:] = [pod for pod in answer.json()["items"] if pod["status"]["phase"] == "Running"]
            return bool(found)

        until(is_running, lambda: self._described(run_id), timeout_s=RUN_TIMEOUT_S)
        return found[0]

    def operate(self, *argv: str) -> str:
        """Run the command line in the code server's container, as docs/deploy.md says."""
        return self.kubectl("exec", "deployment/dagster-code-server", "--", "synapse-ops", *argv)

    def kill_pod(self, pod: Object) -> None:
        """Kill the processes of a pod, as the kernel does that has no more memory."""
        for pids in self.stack.processes(pod).values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill(self, part: str) -> None:
        """Kill the only pod of a part, and wait until it is ready again."""
        [pod] = self.stack.applied.pods(part)
        before = _restarts(pod)
        self.kill_pod(pod)

        def is_back() -> bool:
            [found] = self.stack.applied.pods(part)
            return _restarts(found) > before and is_ready(found)

        until(is_back, lambda: self.kubectl("get", "pods"), timeout_s=AVAILABLE_TIMEOUT_S)

    @contextmanager
    def held(self, table: str, database: str = "synapse") -> Iterator[None]:
        """Lock a table of the protected database, so that whoever dumps it waits, until the block ends."""
        lock = f"begin; lock table {table} in access exclusive mode; select pg_sleep(600)"
        thread = threading.Thread(target=self._sleep, args=(lock, database), daemon=True)
        thread.start()
        waiting = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and wait_event = 'PgSleep'"
        until(lambda: self.stack.sql("db-primary", waiting) == "1", lambda: "the lock is not held")
        try:
            yield
        finally:
            ends = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
            self.stack.sql("db-primary", ends)
            thread.join(timeout=60)

    def _sleep(self, statement: str, database: str) -> None:
        try:
            self.stack.sql("db-primary", statement, database)
        except AssertionError:  # its session was ended
            return


def _restarts(pod: Object) -> int:
    return sum(each["restartCount"] for each in pod["status"]["containerStatuses"])


def deploy(stack: Stack, folder: Path) -> Deployment:
    """Apply deploy/kubernetes through an overlay of the operator's own, as docs/deploy.md says."""
    shutil.copytree(FOLDER, folder / "kubernetes")
    own = folder / "own"
    own.mkdir()
    (own / "infrastructure.yaml").write_text(json.dumps({"name": "synapse"} | dict(stack.spec)))
    (own / "kustomization.yaml").write_text(
        f"""\
namespace: {stack.namespace}
resources: [../kubernetes]
images:
  - {{name: synapse-ops, newTag: latest}}
configMapGenerator:
  - {{name: synapse-ops-spec, behavior: merge, files: [infrastructure.yaml]}}
  - {{name: synapse-ops-runs, behavior: merge, files: [infrastructure.yaml], options: {{disableNameSuffixHash: true}}}}
  - {{name: dagster-environment, behavior: merge, literals: [AWS_ENDPOINT_URL_S3={stack.store.endpoint}]}}
"""
    )
    for name, key in (("dagster-postgres", "password"), ("dagster-webserver", "session")):
        stack.applied.kubectl("create", "secret", "generic", name, f"--from-literal={key}=of-the-tests-{key}")
    stack.applied.kubectl("apply", "--server-side", f"--kustomize={own}")
    until(
        lambda: bool(
            stack.applied.kubectl("wait", "--for=condition=Available", "--timeout=60s", "deployment", "--all")
        ),
        lambda: stack.applied.kubectl("get", "pods"),
        timeout_s=AVAILABLE_TIMEOUT_S,
    )
    return Deployment(stack, opened_ui(stack))


def opened_ui(stack: Stack) -> httpx.Client:
    """Return a browser's session: the URL is printed to who may use `kubectl exec`."""
    url = stack.applied.kubectl("exec", "deployment/dagster-webserver", "--", "synapse-ops", "ui", "--new-url").strip()
    pod = stack.applied.pods("dagster-webserver")[0]
    ui = httpx.Client(
        base_url=f"http://{pod['status']['podIP']}:3000",
        headers={"Host": _ADDRESS, "Origin": f"http://{_ADDRESS}"},
        trust_env=False,
        timeout=60,
    )
    opened = ui.get(url[url.index("/open?") :])
    assert opened.status_code == 200, opened.text
    ui.headers["Cookie"] = opened.headers["set-cookie"].partition(";")[0]
    return ui
