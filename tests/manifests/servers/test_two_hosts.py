"""Two PostgreSQL servers with the files that are rendered for two hosts, as an operator copies them: a handover.

The names of the hosts become this host's, and the passfile's path one of the tests; all else is what is rendered.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from synapse_ops.local.credentials import make_certificates, now_utc, write_secret
from synapse_ops.manifests.bundle import Bundle, render_bundle
from synapse_ops.manifests.servers.postgres import PASSFILE
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports, give_to, make_private_dir, run_as, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from tests.servers import servers_dir

LIMIT_S = 60.0
PASSWORD = "tests-only"


@dataclass(frozen=True)
class Pair:
    """Both servers by role at first, with the folder of each."""

    folder: Path
    tools: PgTools
    bundle: Bundle
    ports: dict[str, int]

    def here(self, text: str) -> str:
        """Return a rendered text with this host's names and paths."""
        for name in ("pg-a.example.org", "pg-b.example.org"):
            text = text.replace(name, "localhost")
        return text.replace(PASSFILE, str(self.folder / "pgpass"))

    def run(self, program: str, *arguments: object) -> None:
        environment = self.tools.environment() | {"SSL_CERT_FILE": str(self.folder / "ca.crt")}  # "system", to them
        command = [self.tools.path(program), *map(str, arguments)]
        run_as(server_identity(), command, timeout_s=LIMIT_S, env=environment)

    def start(self, role: str) -> None:
        data = self.folder / role / "data"
        for name in ("postgresql.conf", "pg_hba.conf"):
            (data / name).write_text(self.here(self.bundle.by_path[f"postgres/{role}/{name}"].text))
            give_to(server_identity(), data / name)
        options = "-c unix_socket_directories= -c fsync=off -c listen_addresses=127.0.0.1"
        log = self.folder / role / "log"
        self.run("pg_ctl", "start", "--wait", "-D", data, "-l", log, "-o", options)

    def follow(self, role: str) -> None:
        signal = self.folder / role / "data" / "standby.signal"
        signal.touch()
        give_to(server_identity(), signal)

    def rows(self, role: str, statement: str) -> list[Any]:
        """Run one statement as the superuser."""
        conninfo = make_conninfo(
            host="localhost", port=self.ports[role], user="postgres", password=PASSWORD, dbname="postgres",
            sslmode="verify-full", sslrootcert=self.folder / "ca.crt",
        )  # fmt: skip
        with psycopg.connect(conninfo, autocommit=True) as connection:
            found = connection.execute(statement)  # type: ignore[arg-type]
            return found.fetchall() if found.description else []

    def await_follower(self, role: str, name: str) -> None:
        ends = time.monotonic() + LIMIT_S
        while (found := self.rows(role, "select application_name, state from pg_stat_replication")) != [
            (name, "streaming")
        ]:
            assert time.monotonic() < ends, (found, (self.folder / role / "log").read_text()[-2000:])
            time.sleep(0.05)

    def write(self, note: str) -> int:
        """Write through the rendered URL of clients; return the port of the server that took it."""
        url = self.here(self.bundle.by_path["postgres/database-url.txt"].text.strip())
        with psycopg.connect(make_conninfo(url, password=PASSWORD, sslrootcert=self.folder / "ca.crt")) as connection:
            connection.execute("create table if not exists notes (note text)")
            connection.execute("insert into notes values (%s)", [note])
            [(port,)] = connection.execute("select inet_server_port()").fetchall()
        return int(port)


@pytest.fixture
def pair(server_tools: PgTools) -> Iterator[Pair]:
    folder, identity = servers_dir("two-hosts"), server_identity()
    ports = dict(zip(("primary", "standby"), free_ports(2), strict=True))
    make_certificates(folder / "tls", folder / "ca.crt", identity, now_utc())
    write_secret(folder / "pgpass", f"*:*:*:*:{PASSWORD}\n", identity)
    write_secret(folder / "password", PASSWORD, identity)
    spec = {
        "database": {
            "host": "pg-a.example.org",
            "port": ports["primary"],
            "nodes": {
                "db-primary": f"pg-a.example.org:{ports['primary']}",
                "db-standby": f"pg-b.example.org:{ports['standby']}",
            },
        },
        "tls": {"cert_file": str(folder / "tls" / "server.crt"), "key_file": str(folder / "tls" / "server.key")},
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"memory": "64Mi"}},
    }
    loaded, faults = check_text(json.dumps(spec), Path("spec.yaml"))
    assert loaded is not None, faults
    found = Pair(folder, server_tools, render_bundle(loaded.spec), ports)
    try:
        for role in ports:
            make_private_dir(folder / role, identity)
        data = folder / "primary" / "data"
        found.run(
            "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--no-sync", "-k", f"--pwfile={folder / 'password'}"
        )
        found.start("primary")
        found.rows("primary", f"create role synapse_replication login replication password '{PASSWORD}'")
        found.rows("primary", f"create role synapse_user login password '{PASSWORD}'")
        found.rows("primary", "create database synapse owner synapse_user")
        found.rows("primary", "select pg_create_physical_replication_slot('standby')")
        source = make_conninfo(
            host="localhost", port=ports["primary"], user="synapse_replication", passfile=folder / "pgpass"
        )
        target = folder / "standby" / "data"
        found.run("pg_basebackup", "-d", source, "-D", target, "-X", "stream", "--checkpoint=fast", "--no-sync")
        found.follow("standby")
        found.start("standby")
        yield found
    finally:
        for role in ports:
            if (folder / role / "data" / "postmaster.pid").exists():
                found.run("pg_ctl", "stop", "-D", folder / role / "data", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)


def test_two_hosts_exchange_their_roles_with_the_files_that_are_rendered(pair: Pair) -> None:
    """Clients write to whichever host takes writes by one URL, and each host follows the other, whoever is primary."""
    pair.await_follower("primary", "db-standby")
    assert pair.write("before") == pair.ports["primary"]

    pair.run("pg_ctl", "stop", "-D", pair.folder / "primary" / "data", "-m", "fast")
    pair.rows("standby", "select pg_promote(), pg_create_physical_replication_slot('standby')")
    assert pair.write("after") == pair.ports["standby"]
    pair.follow("primary")
    pair.start("primary")

    pair.await_follower("standby", "db-primary")
    assert pair.write("both there") == pair.ports["standby"]
    assert pair.rows("primary", "select pg_is_in_recovery()") == [(True,)]
