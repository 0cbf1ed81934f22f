"""Two real PostgreSQL nodes start from the rendered compose documents, and let in exactly whom they should.

The image cannot be had here: a stand-in of its entrypoint does what the image does at its first start (initdb, a server
on a socket, the scripts, the server). All else is what is rendered, with the container's paths and names changed to
those of this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.health.servers import judge_server
from synapse_ops.errors import ConfigError
from synapse_ops.local.credentials import make_certificates, now_utc
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.database.synchronous import keep_synchronous
from synapse_ops.operations.database.wal_source import SLOT, open_wal_server
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports, give_to, make_private_dir, server_identity
from synapse_ops.systems.postgres.probe import read_facts
from synapse_ops.systems.postgres.programs import find_pg_tools, tools_for
from synapse_ops.systems.postgres.replication import connect_replication
from synapse_ops.systems.probe_stage import Stage
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.servers import servers_dir

START_LIMIT_S = 90.0
DOC = Path(__file__).parents[3] / "docs" / "failover.md"
SPEC: dict[str, Any] = {
    "name": "synapse",
    "database": {"user": "o'neil", "databases": ["synapse", 'odd "name"'], "replication_user": "follow er"},
    "failover": {"synchronous": "standby"},
    "backup": {"database": {"base": {"full_every": "7d"}}},
    "resources": {"limits": {"memory": "256Mi"}, "requests": {"memory": "64Mi"}},
}
PASSWORDS = {
    name: f"{name} 'of\" te:s\\ts\\\\ $d `e` &%40" for name in ("postgres", "database", "replication", "monitoring")
}
ENTRYPOINT = """#!/bin/bash
set -euo pipefail
shift
export PGHOST="$SOCKETS" PGPASSWORD="$(cat "$POSTGRES_PASSWORD_FILE")"
options=("$@" -c "unix_socket_directories=$SOCKETS" -c fsync=off)
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username postgres --pwfile "$POSTGRES_PASSWORD_FILE" --no-sync $POSTGRES_INITDB_ARGS --pgdata "$PGDATA"
  pg_ctl --pgdata "$PGDATA" --wait --options "$(printf '%q ' "${options[@]}" -c listen_addresses=)" start
  touch "$SOCKETS/asked"
  if sh -c "$HEALTH"; then touch "$SOCKETS/healthy-too-early"; fi
  sh "$ROLES"
  pg_ctl --pgdata "$PGDATA" --wait --mode fast stop
fi
unset PGPASSWORD
exec postgres "${options[@]}" -c listen_addresses=127.0.0.1
"""


@dataclass(frozen=True)
class Node:
    """A node as its service of the compose file starts it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    home: Path
    command: list[str]
    environment: dict[str, str]
    authority: Path

    def again(self) -> Node:
        """Start what has ended, as an engine starts its container anew."""
        return replace(self, process=_run(self.command, self.environment, self.home))

    def rejoin(self) -> None:
        """Run in its container what docs/failover.md has for a node that waits at its gate."""
        block = next(one for one in DOC.read_text().split("```") if "pg_basebackup" in one)
        followed = re.search(r"^other='(.*) dbname=postgres'$", (self.home / "start.sh").read_text(), re.MULTILINE)
        assert followed is not None
        conninfo = shlex.split(f"'{followed[1]}'")[0]
        script = re.sub(r'--dbname "[^"]*"', lambda _: f'--dbname "{conninfo}"', block)
        assert script != block
        _run(["bash", "-euc", script], self.environment, self.home, log="rejoin").wait(START_LIMIT_S)

    def conninfo(self, user: str, password: str, database: str, **more: str) -> str:
        base = {"sslmode": "verify-full", "sslrootcert": str(self.authority), "connect_timeout": 10}
        return make_conninfo(
            host="localhost", port=self.port, user=user, password=password, dbname=database, **(base | more)
        )

    def rows(self, statement: str, user: str = "postgres", database: str = "postgres", **more: str) -> list[Any]:
        """Run one statement as a role with its password, or `postgres`."""
        password = {"o'neil": "database", "follow er": "replication", "synapse_monitoring": "monitoring"}
        conninfo = self.conninfo(user, PASSWORDS[password.get(user, "postgres")], database, **more)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            found = connection.execute(statement)  # type: ignore[arg-type]
            return found.fetchall() if found.description else []

    def await_rows(self, statement: str, wanted: list[Any], **of: str) -> None:
        ends = time.monotonic() + START_LIMIT_S
        while True:
            try:
                found: object = self.rows(statement, **of)
            except psycopg.Error as error:
                found = error
            if found == wanted:
                return
            log = (self.home / "log").read_text()[-3000:]
            assert self.process.poll() is None, log
            assert time.monotonic() < ends, f"{found}\n{log}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    folder, identity = servers_dir("rendered"), server_identity()
    ports = dict(zip(("db-primary", "db-standby"), free_ports(2), strict=True))
    loaded, faults = check_text(json.dumps(SPEC), Path("spec.yaml"))
    assert loaded is not None, faults
    write_directory(render_bundle(loaded.spec), folder / "release")
    make_certificates(folder / "tls", folder / "tls" / "ca.crt", identity, now_utc())
    secrets = make_private_dir(folder / "secrets", identity)
    for name, source in (("tls.crt", "server.crt"), ("tls.key", "server.key"), ("ca.crt", "ca.crt")):
        shutil.copy(folder / "tls" / source, secrets / name)
    for name, password in PASSWORDS.items():
        (secrets / f"{name}-password").write_text(f"{password}\n")
    for path in secrets.iterdir():
        path.chmod(0o600)
        give_to(identity, path)
    (secrets / "tls.key").chmod(0o440)  # as docs/manifests.md says, which PostgreSQL refuses of a file of its own
    tools = tools_for(identity, find_pg_tools(17), folder / "programs")
    (folder / "bin").mkdir()
    (folder / "bin" / "docker-entrypoint.sh").write_text(ENTRYPOINT)
    (folder / "bin" / "docker-entrypoint.sh").chmod(0o755)
    started: list[Node] = []
    try:
        for name, port in reversed(ports.items()):
            home = make_private_dir(folder / name, identity)
            started.append(_start(folder, home, name, port, ports, path=f"{folder / 'bin'}:{tools.bin_dir}"))
            if len(started) == 1:
                _await_refusals(started[0])
        standby, primary = started
        primary.await_rows("select 1", [(1,)])
        standby.await_rows("select 1", [(1,)])
        yield primary, standby
    finally:
        for node in started:
            node.process.send_signal(signal.SIGINT)
        for node in started:
            node.process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _await_refusals(standby: Node) -> None:
    """Wait until a standby without data has asked in vain twice."""
    ends = time.monotonic() + START_LIMIT_S
    while (said := (standby.home / "log").read_text()).count("Connection refused") < 2:
        assert time.monotonic() < ends, said
        time.sleep(0.1)


def _start(folder: Path, home: Path, name: str, port: int, ports: dict[str, int], *, path: str) -> Node:
    """Start the service `name` of the compose file, with this host's paths in place of the container's."""
    release, identity = folder / "release", server_identity()
    service = yaml.safe_load((release / "docker" / "compose.yaml").read_text())["services"][name]
    changes = {f"host={other} port=5432": f"host=localhost port={number}" for other, number in ports.items()}
    changes |= {"port=5432": f"port={port}", "/run/secrets": str(folder / "secrets"), "/etc/postgresql": str(home)}
    changes |= {"/var/lib/postgresql/data": str(home / "data"), "/tmp/replication.pgpass": str(home / "pgpass")}
    changes |= {"/tmp/tls.key": str(home / "tls.key"), "/tmp/control": str(home / "control")}

    def here(text: str) -> str:
        for old, new in changes.items():
            text = text.replace(old, new)
        return text.replace("$$", "$")

    (home / "data").mkdir()
    for mount in service["volumes"]:
        if mount["type"] == "bind":
            source = (release / "docker" / mount["source"]).resolve()
            (home / Path(mount["target"]).name).write_text(here(source.read_text()))
    for each in (home / "data", *home.iterdir()):
        give_to(identity, each)
    environment = {key: here(value) for key, value in service["environment"].items()}
    environment |= {"PATH": f"{path}:{os.environ['PATH']}", "PGPORT": str(port), "LANG": "C.UTF-8"}
    environment |= {"SOCKETS": str(home), "ROLES": str(home / "create-roles.sh")}
    health = [str(port) if word == "5432" else here(word) for word in service["healthcheck"]["test"][1:]]
    environment["HEALTH"] = shlex.join(health)
    command = [*map(here, service["entrypoint"]), *map(here, service["command"])]
    process = _run(command, environment, home)
    return Node(name, port, process, home, command, environment, folder / "tls" / "ca.crt")


def _run(command: list[str], environment: dict[str, str], home: Path, log: str = "log") -> subprocess.Popen[bytes]:
    identity = server_identity()
    user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": []}
    with (home / log).open("wb") as output:
        return subprocess.Popen(
            command, env=environment, cwd=home, stdout=output, stderr=output, stdin=subprocess.DEVNULL, **user
        )  # type: ignore[call-overload, no-any-return]


def test_a_node_is_healthy_when_clients_reach_it_and_not_before(nodes: tuple[Node, Node]) -> None:
    """The image's first server, which creates the roles, answers on its socket: a standby that came then would find
    nothing to clone.
    """
    assert (nodes[0].home / "asked").exists()
    for node in nodes:
        assert not (node.home / "healthy-too-early").exists()
        subprocess.run(["sh", "-c", node.environment["HEALTH"]], env=node.environment, timeout=30, check=True)


def test_a_standby_that_starts_before_the_primary_waits_for_it(nodes: tuple[Node, Node]) -> None:
    """In a cluster both start at once. A container that ended would be started again after 10 s, 20 s, up to 5 min."""
    _, standby = nodes

    assert "Connection refused" in (standby.home / "log").read_text()
    assert standby.process.poll() is None
    assert standby.rows("select pg_is_in_recovery()") == [(True,)]


def test_what_the_application_writes_is_on_the_standby(nodes: tuple[Node, Node]) -> None:
    """Over TLS that is verified, by the rendered roles, passfile and slot. A commit waits for the standby once the
    role of the WAL receiver has said so; the rendered configuration must not (a promoted node would wait as well).
    """
    primary, standby = nodes
    loaded, _ = check_text(json.dumps(SPEC), Path("spec.yaml"))
    assert loaded is not None
    standby.await_rows("select status from pg_stat_wal_receiver", [("streaming",)])
    assert primary.rows("show synchronous_standby_names") == [("",)]
    receiver = primary.conninfo("follow er", PASSWORDS["replication"], "postgres")
    with psycopg.connect(receiver, autocommit=True) as connection:
        kept = keep_synchronous(connection, loaded.spec)
    assert kept.setting == 'FIRST 1 ("db-standby")'
    primary.rows("create table notes as select 42 as answer", user="o'neil", database="synapse")

    standby.await_rows("select answer from notes", [(42,)], user="o'neil", database="synapse")

    assert standby.rows("select pg_is_in_recovery()") == [(True,)]
    assert primary.rows("select active from pg_replication_slots where slot_name = 'standby'") == [(True,)]
    assert primary.rows("select application_name, sync_state from pg_stat_replication") == [("db-standby", "sync")]


def test_each_role_reaches_what_it_needs_and_nothing_else(nodes: tuple[Node, Node]) -> None:
    """The exporter reads statistics; nobody comes without TLS, and no role into another's database."""
    for node in nodes:
        assert node.rows("select 1", user="synapse_monitoring", sslmode="require") == [(1,)]
        assert node.rows("select 1", user="o'neil", database='odd "name"') == [(1,)]
        for user, database, sslmode in (
            ("o'neil", "synapse", "disable"),
            ("o'neil", "postgres", "require"),
            ("synapse_monitoring", "synapse", "require"),
            ("follow er", "synapse", "require"),
        ):
            with pytest.raises(psycopg.OperationalError, match="rejects connection"):
                node.rows("select 1", user=user, database=database, sslmode=sslmode)


def test_wal_can_be_received_from_either_node_without_a_superuser(nodes: tuple[Node, Node]) -> None:
    """As `database.replication` names it: a slot over replication, SQL in `postgres`, restore points (W19); no more."""
    admin = nodes[0].conninfo("postgres", PASSWORDS["postgres"], "postgres")
    receiver = [node.conninfo("follow er", PASSWORDS["replication"], "postgres") for node in nodes]
    with pytest.raises(ConfigError) as refused, open_wal_server(receiver[0]):
        pass
    assert "synapse-ops backup now" in refused.value.hint
    with open_wal_server(admin) as server:
        identity = server.identity
    nodes[1].await_rows(
        f"select count(*) from pg_db_role_setting where setconfig::text ~ '{identity.generation}'", [(1,)]
    )

    for conninfo in receiver:
        with (
            connect_replication(conninfo, application_name="test") as connection,
            open_wal_server(conninfo) as server,
        ):
            connection.create_slot(SLOT)
            slot = connection.read_slot(SLOT)
            assert server.identity == identity
            assert slot is not None
            assert slot.restart_lsn is not None
            server.stored_segments([])
            server.end_stale_sender(SLOT)
            facts = asyncio.run(read_facts(conninfo, Stage()))
            [left_bytes] = [each.left_bytes for each in facts.slots if each.name == SLOT]
            assert left_bytes is not None
            assert 9 << 30 < left_bytes < 11 << 30  # of max_slot_wal_keep_size
            left = [each.left_bytes for each in facts.slots if each.left_bytes is not None]
            assert judge_server(facts).measurements["slot_left_bytes"] == min(left)
            connection.drop_slot(SLOT)
    nodes[0].rows("select pg_create_restore_point('seen'), pg_switch_wal()", user="follow er")
    for statement in ("alter system reset wal_keep_size", "select pg_read_file('PG_VERSION')", "create role other"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            nodes[0].rows(statement, user="follow er")


def test_the_rendered_receiver_stores_the_rendered_servers_wal(
    nodes: tuple[Node, Node], tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Its spec, command line and secrets as compose gives them; it connects without a superuser's rights."""
    access, ports = object_store_access, {"db-primary": nodes[0].port, "db-standby": nodes[1].port}
    more = {
        "database": {**SPEC["database"], "replication": "env:URL"},
        "object_store": {"endpoint": access.endpoint},
        "backup": {"database": {"destination": bucket_url}},
    }
    loaded, faults = check_text(json.dumps(SPEC | more), Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path
    service = yaml.safe_load(documents["docker/compose.yaml"].text)["services"]["wal-receiver"]
    spec = documents["docker/wal-receiver/infrastructure.yaml"].text.replace("/run/secrets", str(tmp_path))
    for name, port in ports.items():
        spec = spec.replace(f"{name}:5432", f"localhost:{port}")
    (tmp_path / "infrastructure.yaml").write_text(spec)
    login = f"{quote('follow er')}:{quote(PASSWORDS['replication'], safe='')}"
    shutil.copy(nodes[0].authority, tmp_path / "ca.crt")
    (tmp_path / "database-replication-url").write_text(
        f"postgresql://{login}@HOST/?sslmode=verify-full&sslrootcert={tmp_path}/ca.crt"
    )
    (tmp_path / "object-store-credentials").write_text(
        f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    )
    [port] = free_ports(1)
    places = {"/etc/synapse/infrastructure.yaml": str(tmp_path / "infrastructure.yaml"), "9110": str(port)}
    places["/var/lib/synapse-ops"] = str(tmp_path / "state")
    command = [places.get(word, word) for word in service["command"]]
    with open_wal_server(nodes[0].conninfo("postgres", PASSWORDS["postgres"], "postgres")):
        pass  # it has a generation now
    nodes[0].rows("create table if not exists written (n int)", user="o'neil", database="synapse")
    [(wanted,)] = nodes[0].rows("select pg_current_wal_flush_lsn()::text")

    receiver = subprocess.Popen([sys.executable, *command], cwd=tmp_path)
    try:
        ends, told = time.monotonic() + START_LIMIT_S, {"healthy": False}
        while not told["healthy"] or Lsn.parse(str(told["durable_lsn"])) < Lsn.parse(wanted):
            assert time.monotonic() < ends, told
            assert receiver.poll() is None
            time.sleep(0.1)
            url = f"http://127.0.0.1:{port}/health"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:  # 503 while it is not
                told = json.load(reply)
    finally:
        receiver.terminate()
        assert receiver.wait(30) == 0
        nodes[0].rows(f"select pg_drop_replication_slot('{SLOT}')")

    assert any("/wal/" in one.key for one in ObjectStore(bucket_url, access).list_objects(""))


def test_the_server_has_the_settings_that_safety_needs(nodes: tuple[Node, Node]) -> None:
    """As the running servers say, not as the file does; and no line of the file is wrong."""
    for node in nodes:
        shown = dict(node.rows("select name, setting from pg_settings"))
        assert shown["data_checksums"] == "on"
        assert shown["ssl_min_protocol_version"] == "TLSv1.2"
        assert shown["wal_retrieve_retry_interval"] == "200"  # ms
        assert "connect_timeout=2 " in shown["primary_conninfo"]
        assert shown["password_encryption"] == "scram-sha-256"
        assert (shown["summarize_wal"], shown["wal_summary_keep_time"]) == ("on", str(9 * 24 * 60))  # minutes
        assert int(shown["max_connections"]) - int(shown["superuser_reserved_connections"]) >= 20
        refused = (
            "select name from pg_file_settings where error is not null and name not in ('port', 'listen_addresses')"
        )
        assert node.rows(refused) == []  # but for what the command line has
        assert node.rows("select line_number, error from pg_hba_file_rules where error is not null") == []


def test_a_primary_starts_again_while_the_other_follows_and_not_once_it_was_promoted(nodes: tuple[Node, Node]) -> None:
    """Neither prober nor repository is there. It is rejoined as docs/failover.md has it. The last test of this file:
    the nodes have changed places behind it.
    """
    primary, standby = nodes
    primary.process.send_signal(signal.SIGINT)
    primary.process.wait(START_LIMIT_S)
    again = primary.again()
    try:
        again.await_rows("select pg_is_in_recovery()", [(False,)])
        again.process.send_signal(signal.SIGINT)
        again.process.wait(START_LIMIT_S)
        standby.rows("select pg_promote()")
        again = primary.again()
        ends = time.monotonic() + START_LIMIT_S
        while "hint:" not in (told := (again.home / "log").read_text()):
            assert time.monotonic() < ends, told
            time.sleep(0.05)
        takes_writes = standby.rows("select pg_is_in_recovery()")
        standby.rows("select pg_create_physical_replication_slot('standby', true)")
        again.rejoin()
        again.await_rows("select status from pg_stat_wal_receiver", [("streaming",)])
    finally:
        again.process.send_signal(signal.SIGINT)
        again.process.wait(START_LIMIT_S)

    assert "db-primary does not start as the primary: the other node takes writes\n" in told
    assert "database system" not in told  # no server has said a word
    assert takes_writes == [(False,)]
