"""A spec's rendered compose file that was started on the engine, as docs/manifests.md says, and is taken down again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from synapse_ops.local.credentials import make_certificates, now_utc
from synapse_ops.spec import Spec
from synapse_ops.systems.host.processes import POLL_S
from tests.engine.engine import Engine
from tests.engine.images import write_rendered

# told: the check `db` is asked once a minute, and believed after several answers
UP_TIMEOUT_S, BACK_TIMEOUT_S, TOLD_TIMEOUT_S = 420.0, 180.0, 300.0
_GROUP = 10001
_ADMIN_URL = "postgresql://postgres:{password}@{host}/?sslmode=verify-full&sslrootcert=/run/secrets/ca.crt"
_METRICS = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9109/metrics').read().decode())"
Container = dict[str, Any]


@dataclass(frozen=True)
class Stack:
    """folder: what the spec was rendered to, and docker/secrets. api: through the proxy, its certificate verified.

    more: files that are laid over the rendered one. variables: what those read of the environment.
    """

    engine: Engine
    spec: Spec
    folder: Path
    api: httpx.Client
    more: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "docker" / "compose.yaml"

    @property
    def services(self) -> dict[str, Any]:
        """Return the rendered services by name."""
        return dict(YAML(typ="safe").load(self.file)["services"])

    def compose(self, *arguments: str, timeout_s: float = UP_TIMEOUT_S) -> str:
        return self.engine.compose((self.file, *self.more), *arguments, timeout_s=timeout_s, variables=self.variables)

    def up(self, *arguments: str) -> None:
        """Run the command that the rendered file names, and say of a failure which service is the cause."""
        try:
            self.compose("up", "--detach", "--wait", *arguments)
        except (AssertionError, subprocess.TimeoutExpired) as failed:
            raise AssertionError(f"{failed}\n{self.unwell()}") from failed

    def unwell(self) -> str:
        """Return what is not healthy, with the end of its log."""
        found = []
        for name in self.compose("config", "--services").split():
            container = self.container(name)
            if container is None:
                found.append(f"{name}: no container")
            elif (state := container["State"]).get("Health", {}).get("Status") != "healthy":
                log = self.compose("logs", "--no-color", "--tail=15", name)
                found.append(f"{name}: {json.dumps(state)[-1500:]}\n{log}")
        return "\n".join(found)

    def container(self, service: str) -> Container | None:
        """Return what the engine knows of a service's container; None where there is none."""
        identifiers = self.compose("ps", "--all", "--quiet", service).split()
        return json.loads(self.engine.docker("inspect", identifiers[0]))[0] if identifiers else None

    def is_healthy(self, service: str, *, since: str = "") -> bool:
        """Whether a service runs and its health check passes, in a run that began after `since`."""
        container = self.container(service)
        if container is None:
            return False
        state = container["State"]
        return bool(state["StartedAt"] > since and state.get("Health", {}).get("Status") == "healthy")

    def health(self, service: str) -> str:
        """Return what Docker says of a service's health; empty where it has no container."""
        found = self.container(service)
        return str(found["State"]["Health"]["Status"]) if found else ""

    def failed_probes(self) -> set[str]:
        """Return the probes that the prober's metrics say have failed."""
        lines = self.inside("synapse-ops", "python", "-c", _METRICS).splitlines()
        before, after = 'synapse_ops_probe_state{probe="', '",state="failed"} 1.0'
        return {line.removeprefix(before).removesuffix(after) for line in lines if line.endswith(after)}

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container, and return what it writes."""
        return self.compose("exec", "--no-TTY", service, *command)


def until(is_so: Callable[[], object], what: str, *, timeout_s: float) -> float:
    """Wait until it is so, and return the seconds that took. An error of HTTP means that it is not so yet."""
    began = time.monotonic()
    last: object = None
    while True:
        try:
            if last := is_so():
                return time.monotonic() - began
        except httpx.HTTPError as error:
            last = error
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s:g} s: {last!r}"
        time.sleep(10 * POLL_S)


def make_secrets(
    folder: Path,
    given: Mapping[str, str] | None = None,
    *,
    names: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Path:
    """Make each secret that a rendered compose file names, as docs/manifests.md says. Returns the authority's file.

    given: contents that are not made up. names: those of the certificate, besides tls/certificate-names.txt. more:
    secrets that no rendered file names.
    """
    place = folder / "docker" / "secrets"
    place.mkdir()
    rendered = (folder / "tls" / "certificate-names.txt").read_text().split()
    tls = folder / "made-tls"
    make_certificates(tls, place / "ca.crt", None, now_utc(), names=[*rendered, *names])
    shutil.move(tls / "server.crt", place / "tls.crt")
    shutil.move(tls / "server.key", place / "tls.key")
    wanted = {*YAML(typ="safe").load(folder / "docker" / "compose.yaml")["secrets"], *more}
    made = {name: secrets.token_urlsafe() for name in wanted}
    special = {
        "object-store-credentials": "[default]\naws_access_key_id = tests\naws_secret_access_key = tests-only\n",
        "database-admin-url": _ADMIN_URL.format(password=made.get("postgres-password"), host="db-primary"),
    }
    for name, text in (made | special | dict(given or {})).items():
        if name in wanted and name not in ("ca.crt", "tls.crt", "tls.key"):
            (place / name).write_text(text)
    for path in place.iterdir():
        os.chown(path, 0, _GROUP)
        path.chmod(0o440)
    return place / "ca.crt"


@contextmanager
def running_stack(engine: Engine, folder: Path, spec: Spec) -> Iterator[Stack]:
    """Render a spec, make its secrets and start it; `down --volumes` at the end."""
    write_rendered(spec, folder)
    with started_stack(engine, folder, spec, make_secrets(folder)) as stack:
        yield stack


@contextmanager
def started_stack(
    engine: Engine,
    folder: Path,
    spec: Spec,
    authority: Path,
    *services: str,
    more: Sequence[Path] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Start what was rendered to a folder, with its secrets; `down --volumes` at the end.

    authority: of the proxy. services: these, with what they depend on; none means all. more, variables: see Stack.
    """
    context = ssl.create_default_context(cafile=str(authority))
    with (
        engine.forwarded(443) as port,
        httpx.Client(base_url=f"https://localhost:{port}", verify=context, timeout=10, trust_env=False) as api,
    ):
        stack = Stack(engine, spec, folder, api, tuple(more), dict(variables or {}))
        try:
            stack.up(*services)
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout=2")
