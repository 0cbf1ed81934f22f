"""The rendered compose file of a spec whose stores are all elsewhere: servers beside it, on another network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from tests.engine.engine import ENGINE, Engine
from tests.engine.images import write_rendered
from tests.engine.stack import BACK_TIMEOUT_S, TOLD_TIMEOUT_S, Stack, make_secrets, started_stack, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SPEC = {
    "name": "elsewhere",
    "database": {"host": ENGINE},
    "redis": {"host": ENGINE},
    "qdrant": {"host": ENGINE},
    "failover": {"standby": None},
    "logging": {"elasticsearch": [f"http://{ENGINE}:9200"]},
}
# as whoever runs that server gives it to us
ROLES = """#!/bin/sh
set -eu
echo 'hostssl all,replication all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
psql --set ON_ERROR_STOP=1 --username postgres --dbname postgres --quiet <<'SQL'
\\set app `cat /run/secrets/database-password`
create role synapse_user login password :'app';
create database synapse owner synapse_user;
SQL
"""
POSTGRES = """\
cat /run/secrets/tls.key >/tmp/tls.key && chmod 600 /tmp/tls.key
exec docker-entrypoint.sh postgres -c listen_addresses='*' -c ssl=on -c ssl_cert_file=/run/secrets/tls.crt \
  -c ssl_key_file=/tmp/tls.key -c wal_level=replica"""


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    loaded, faults = check_text(json.dumps(SPEC), Path("spec.yaml"))
    assert loaded is not None, faults
    folder = tmp_path_factory.mktemp("stack")
    write_rendered(loaded.spec, folder)
    url = f"postgresql://postgres:tests-only@{ENGINE}/?sslmode=verify-full&sslrootcert=/run/secrets/ca.crt"
    authority = make_secrets(folder, {"database-admin-url": url}, names=[ENGINE])
    (folder / "docker" / "secrets" / "postgres-password").write_text("tests-only")
    names = _start_stores(engine, loaded.spec, folder)
    try:
        with started_stack(engine, folder, loaded.spec, authority) as stack:
            yield stack
    finally:
        engine.docker("rm", "--force", "--volumes", *names)


def test_no_store_is_part_of_the_stack_and_everything_is_healthy(stack: Stack) -> None:
    assert not {"db-primary", "redis", "qdrant", "elasticsearch"} & stack.services.keys()
    assert stack.unwell() == ""


def test_a_request_passes_the_proxy_and_reaches_every_store_over_the_outer_network(stack: Stack) -> None:
    """PostgreSQL's certificate is verified for the address by which the spec names it."""
    written = stack.api.post("/generate", json={"prompt": "a document with a vector"})

    assert written.status_code == 200, written.text
    assert stack.api.get(f"/documents/{written.json()['id']}").json()["text"] == written.json()["text"]
    assert stack.api.get("/health/redis").json() == {"ok": True}


def test_the_prober_sees_every_store_elsewhere(stack: Stack) -> None:
    """All but the object store, which does not run here."""
    until(lambda: stack.failed_probes() == {"server/object-store"}, "the prober tells", timeout_s=TOLD_TIMEOUT_S)


@pytest.mark.parametrize("service", ["proxy", "api", "worker", "synapse-ops", "wal-receiver"])
def test_a_killed_process_comes_back_by_itself(stack: Stack, service: str) -> None:
    before = stack.container(service)
    assert before is not None
    stack.engine.kill(before["State"]["Pid"])

    began = before["State"]["StartedAt"]
    until(lambda: stack.is_healthy(service, since=began), f"{service} is healthy", timeout_s=BACK_TIMEOUT_S)
    until(lambda: stack.api.get("/health/db").status_code == 200, "PostgreSQL is asked", timeout_s=TOLD_TIMEOUT_S)


def _start_stores(engine: Engine, spec: Spec, folder: Path) -> list[str]:
    """Start the stores in the engine's own network, and return the names of their containers."""
    images = spec.docker.images
    scripts = folder / "initdb.d"
    scripts.mkdir()
    (scripts / "roles.sh").write_text(ROLES)
    config = folder / "elsewhere.yaml"
    shutil.copyfile(folder / "qdrant" / "config.yaml", config)
    common = ("run", "--detach", "--network=host")
    engine.docker(
        *common, "--name=elsewhere-db", "--user=999:999", "--group-add=10001",
        f"--volume={folder / 'docker' / 'secrets'}:/run/secrets:ro",
        f"--volume={scripts}:/docker-entrypoint-initdb.d:ro",
        "--env=POSTGRES_PASSWORD_FILE=/run/secrets/postgres-password",
        "--env=POSTGRES_INITDB_ARGS=--data-checksums --auth-local=scram-sha-256 --auth-host=scram-sha-256",
        "--entrypoint=bash", images.postgres, "-euc", POSTGRES,
    )  # fmt: skip
    engine.docker(*common, "--name=elsewhere-redis", images.redis, "--bind", "*", "--protected-mode", "no")
    engine.docker(
        *common, "--name=elsewhere-qdrant", f"--volume={config}:/etc/qdrant/config.yaml:ro",
        images.qdrant, "--config-path", "/etc/qdrant/config.yaml",
    )  # fmt: skip
    engine.docker(*common, "--name=elsewhere-logs", images.elasticsearch)
    return [f"elsewhere-{name}" for name in ("db", "redis", "qdrant", "logs")]
