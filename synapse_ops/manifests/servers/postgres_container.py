"""What the official PostgreSQL image needs to be a node: its start script, the roles of a new primary, its arguments.

Passwords are files below /run/secrets. libpq refuses a passfile that others may read, and mounted secrets often are;
so each node writes its own into memory when it starts. PostgreSQL is as strict about its key: in compose, where the
file has the owner and mode that it has on the host, the node takes a copy of that too. In the cluster it is root's.
"""

from __future__ import annotations

from synapse_ops.manifests.servers.postgres import (
    SLOT,
    application_role_settings,
    has_followers,
    primary_conninfo,
    quoted,
)
from synapse_ops.manifests.servers.start_gate import start_gate
from synapse_ops.manifests.stack.parts import PRIMARY, STANDBY, PlaceName, address_of
from synapse_ops.manifests.stack.processes import DATABASE_PASSWORD, SECRETS_DIR
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import MONITORING_USER

SUPERUSER_PASSWORD = "postgres-password"  # noqa: S105 - names of secrets, not secrets
REPLICATION_PASSWORD = "replication-password"  # noqa: S105
MONITORING_PASSWORD = "monitoring-password"  # noqa: S105
CONFIG_DIR = "/etc/postgresql"
DATA_DIR = "/var/lib/postgresql/data"
RUN_DIR = "/var/run/postgresql"
_PASSFILE = "/tmp/replication.pgpass"  # noqa: S108 - a tmpfs of the container's own
_KEY = {"hosts": "", "compose": "/tmp/tls.key", "kubernetes": f"{SECRETS_DIR}/tls.key"}  # noqa: S108 - the same
_WAL_FUNCTIONS = "pg_switch_wal(), pg_create_restore_point(text), pg_wal_replay_pause(), pg_wal_replay_resume()"

SERVER_ENVIRONMENT = {
    "PGDATA": f"{DATA_DIR}/pgdata",
    "POSTGRES_PASSWORD_FILE": f"{SECRETS_DIR}/{SUPERUSER_PASSWORD}",
    "POSTGRES_INITDB_ARGS": "--data-checksums --auth-local=scram-sha-256 --auth-host=scram-sha-256",
}


def container_secrets(spec: Spec) -> tuple[str, ...]:
    """Return the names of the files below /run/secrets that a node opens."""
    passwords = (SUPERUSER_PASSWORD, DATABASE_PASSWORD, REPLICATION_PASSWORD, MONITORING_PASSWORD)
    wanted = (name for name in passwords if name != REPLICATION_PASSWORD or has_followers(spec))
    return (*wanted, "tls.crt", "tls.key", "ca.crt")


def ready_command(spec: Spec) -> list[str]:
    """Return a command that exits with 0 when a node takes connections where clients make them. On its socket the
    server that the image starts for a moment, to create roles, would answer too, and who waits would come too early.
    """
    return ["pg_isready", "--quiet", "--host", "localhost", "--port", str(spec.database.port), "--username", "postgres"]


def start_script(spec: Spec, node: str, place: PlaceName) -> str:
    """Return the script that is a node's first process. node: PRIMARY or STANDBY.

    A standby without data is cloned beside its place and moved there whole. It asks again until there is a primary: a
    container that ends instead is started later and later. Once it has data, the data say what the node is: a promoted
    standby stays a primary however often it restarts.
    """
    user = spec.database.replication_user.replace("\\", "\\\\").replace(":", "\\:")
    clone, passfile = "", ""
    if spec.failover.standby is not None:
        escaped = f"sed 's/[\\\\:]/\\\\&/g' {SECRETS_DIR}/{REPLICATION_PASSWORD}"  # as libpq reads the file
        entry = f"{{ printf '*:*:*:%s:' {_shell(user)}; {escaped}; echo; }}"
        passfile = f"{entry} >{_PASSFILE}\n"
    if _KEY[place] != f"{SECRETS_DIR}/tls.key":
        passfile += f"cat {SECRETS_DIR}/tls.key >{_KEY[place]}\n"
    if node == STANDBY:
        source = container_conninfo(spec, node, place)
        clone = f"""
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  until rm -rf "$PGDATA.making" && pg_basebackup --dbname {_shell(source)} --pgdata "$PGDATA.making" \\
    --wal-method stream --slot {SLOT} --checkpoint fast --no-password; do sleep 2; done  # there is no primary yet
  touch "$PGDATA.making/standby.signal"
  mv "$PGDATA.making" "$PGDATA"
fi
"""
    gate = ""
    if spec.failover.is_ours:
        name = spec.failover.nodes[node == STANDBY]
        gate = start_gate(spec, name, container_conninfo(spec, node, place), place)
    return f"""#!/bin/bash
set -eu
umask 077
{passfile}{clone}{gate}exec docker-entrypoint.sh postgres "$@"
"""


def roles_script(spec: Spec) -> str:
    """Return what a new primary runs once: roles, databases and the standby's slot."""
    user, replication = spec.database.user, spec.database.replication_user
    statements = []
    if user != "postgres":
        limit = spec.database.max_connections
        statements += [f"create role {identifier(user)} login connection limit {limit} password\n  :'app';"]
    for setting, value in application_role_settings(spec).items():
        statements.append(f"alter role {identifier(user)} set {setting} = {quoted(value)};")
    if has_followers(spec):
        statements += [
            f"create role {identifier(replication)} login replication password\n  :'replication' in role pg_monitor;",
            f"grant execute on function {_WAL_FUNCTIONS} to {identifier(replication)};",
            f"grant alter system on parameter synchronous_standby_names to {identifier(replication)};",
            f"grant execute on function pg_reload_conf() to {identifier(replication)};",
        ]
    statements.append(f"create role {MONITORING_USER} login password\n  :'monitoring' in role pg_monitor;")
    for database in dict.fromkeys((spec.database.name, *spec.database.databases)):
        if database != "postgres":
            statements.append(f"create database {identifier(database)} owner {identifier(user)};")
    if spec.failover.standby is not None:
        statements.append(f"select pg_create_physical_replication_slot({quoted(SLOT)}, true);")
    body = "\n".join(statements)
    told = f"\\set replication `cat {SECRETS_DIR}/{REPLICATION_PASSWORD}`\n" if has_followers(spec) else ""
    return f"""#!/bin/sh
set -eu
psql --set ON_ERROR_STOP=1 --username postgres --dbname postgres --quiet <<'SQL'
\\set app `cat {SECRETS_DIR}/{DATABASE_PASSWORD}`
{told}\\set monitoring `cat {SECRETS_DIR}/{MONITORING_PASSWORD}`
{body}
SQL
"""


def server_arguments(spec: Spec, node: str, place: PlaceName) -> list[str]:
    """Return the settings that are a container's own, over those of the mounted postgresql.conf."""
    settings = {
        "config_file": f"{CONFIG_DIR}/postgresql.conf",
        "hba_file": f"{CONFIG_DIR}/pg_hba.conf",
        "port": str(spec.database.port),
        "ssl_cert_file": f"{SECRETS_DIR}/tls.crt",
        "ssl_key_file": _KEY[place],
    }
    if spec.failover.standby is not None:
        settings["primary_conninfo"] = container_conninfo(spec, node, place)
    return [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]


def container_conninfo(spec: Spec, node: str, place: PlaceName) -> str:
    """Return how a node in a container follows the other. There is a standby."""
    name, other = spec.failover.nodes[node == STANDBY], PRIMARY if node == STANDBY else STANDBY
    followed = address_of(spec, other, place)
    return primary_conninfo(spec, name, followed, authority=f"{SECRETS_DIR}/ca.crt", passfile=_PASSFILE)


def identifier(name: str) -> str:
    """Return a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
