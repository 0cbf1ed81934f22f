"""The Dockerfile of the application's image and its ignore file.

Two stages: the first has compilers and pip, the second only what they made, and no pip, not even the base image's.
Packages come from a lock with hashes, the process runs as a number without a shell, and nothing below / is writable to
it. One image serves API and worker.
"""

from __future__ import annotations

import json

from synapse_ops.manifests.document import Document, text_document
from synapse_ops.manifests.stack.probes import PERIOD_S, START_LIMIT, TIMEOUT_S, liveness, liveness_failures
from synapse_ops.manifests.stack.processes import STOP_SIGNAL, USER_ID, api_command
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOG_DIR

READS = frozenset({"name", "docker", "server", "health"})

_IGNORED = """.git
.github
.venv
venv
**/__pycache__
**/*.pyc
**/.pytest_cache
**/.mypy_cache
**/.ruff_cache
.env
.env.*
**/*.pem
**/*.key
**/*.crt
**/secrets
**/id_rsa*
Dockerfile
Dockerfile.*
compose.yaml
docs
tests
"""


def render_docker(spec: Spec) -> tuple[Document, ...]:
    """Return the Dockerfile, and the ignore file that goes with it by its name.

    Docker prefers `Dockerfile.dockerignore` beside the Dockerfile over the context's `.dockerignore`.
    """
    return (
        text_document("docker/Dockerfile", dockerfile(spec), READS),
        text_document("docker/Dockerfile.dockerignore", _IGNORED, READS),
    )


def dockerfile(spec: Spec) -> str:
    """Return the Dockerfile of API and worker."""
    docker = spec.docker
    package = docker.source.rsplit("/", 1)[-1]
    return f"""# syntax=docker/dockerfile:1
# Build in the application's repository: docker build --file docker/Dockerfile --tag {spec.name}-api .
FROM {docker.base_image} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY {docker.requirements} /build/requirements.lock
RUN python -m venv /opt/build && python -m venv --without-pip /opt/app \\
 && /opt/build/bin/pip --python /opt/app/bin/python install --require-hashes --requirement /build/requirements.lock

FROM {docker.base_image}
LABEL org.opencontainers.image.title="{spec.name}-api" \\
      org.opencontainers.image.description="API and worker of {spec.name}"
RUN if python -m pip --version >/dev/null 2>&1; then python -m pip uninstall --yes pip setuptools wheel; fi
ENV PATH=/opt/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/srv
COPY --from=build /opt/app /opt/app
COPY {docker.source} /srv/{package}
# a new volume takes the owner of the directory that it is mounted on: else no log could be written to it
RUN install --directory --owner={USER_ID} --group={USER_ID} {LOG_DIR}
WORKDIR /srv
USER {USER_ID}:{USER_ID}
EXPOSE {spec.server.port}
STOPSIGNAL {STOP_SIGNAL}
{_healthcheck(spec)}
ENTRYPOINT {json.dumps([api_command(spec)[0]])}
CMD {json.dumps(list(api_command(spec)[1:]))}
"""


def _healthcheck(spec: Spec) -> str:
    probe = liveness(spec)
    timeout_s = TIMEOUT_S if probe is None else probe.timeout_s
    times = f"--interval={PERIOD_S}s --timeout={timeout_s}s --start-period={whole_seconds(START_LIMIT)}s"
    return f"HEALTHCHECK {times} --retries={liveness_failures(spec)} \\\n  CMD {json.dumps(list(health_command(spec)))}"


def health_command(spec: Spec) -> tuple[str, ...]:
    """Return a command that exits with 0 when the API lives: Python's own client, for a slim image has no curl."""
    probe = liveness(spec)
    port = spec.server.port
    if probe is None:
        return ("python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)")
    call = f"urlopen({f'http://127.0.0.1:{port}{probe.path}'!r}, timeout={probe.timeout_s})"
    return ("python", "-c", f"from urllib.request import urlopen; {call}")
