"""How often a backup fails while others create and drop objects 25 times a second, beside `pg_dump` alone.

    python -m benchmarks.concurrent_ddl                 20 tries of each pattern, in turn

Patterns: tables; indexes and columns of a table that stays; partitions, views, functions and sequences. A failure of
ours is a backup that ends with an error; what pg_dump alone says is its exit status. Both read the same database.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from benchmarks.dump import PASSWORD, Servers, running_servers, write_spec
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.stack import open_stack

PERIOD_S = 0.04
DATABASE = "busy"
PATTERNS: dict[str, tuple[str, ...]] = {
    "tables": (
        "create table churn_{n} (id serial primary key, n int default 5 check (n > 0))",
        "drop table if exists churn_{old}",
    ),
    "indexes and columns": (
        "create index kept_{n} on kept (n)",
        "drop index if exists kept_{old}",
        "alter table kept add column c_{n} int default 7",
        "alter table kept drop column if exists c_{old}",
    ),
    "partitions, views, functions, sequences": (
        "create table parted_{n} partition of parted for values in ({n})",
        "drop table if exists parted_{old}",
        "create view seen_{n} as select * from kept where n = {n}",
        "drop view if exists seen_{old}",
        "create function f_{n}() returns int language sql as 'select {n}'",
        "drop function if exists f_{old}",
        "create sequence s_{n}",
        "drop sequence if exists s_{old}",
    ),
}
ALIVE = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    chosen = parser.parse_args()
    with running_servers() as servers:
        with psycopg.connect(servers.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {DATABASE}")
        with psycopg.connect(servers.conninfo(DATABASE), autocommit=True) as connection:
            connection.execute("create table kept as select generate_series(1, 20000) as n")
            connection.execute("create table parted (n int) partition by list (n)")
        for pattern, statements in PATTERNS.items():
            ours, alone = 0, 0
            with churning(servers.conninfo(DATABASE), statements):
                for _ in range(chosen.tries):
                    alone += not dumps_alone(servers)
                    ours += not backs_up(servers)
            print(f"{pattern}: ours failed {ours} of {chosen.tries}, pg_dump alone {alone}", flush=True)


@contextmanager
def churning(conninfo: str, statements: tuple[str, ...]) -> Iterator[None]:
    stop = threading.Event()

    def churn() -> None:
        number = ALIVE
        with psycopg.connect(conninfo, autocommit=True) as connection:
            while not stop.wait(PERIOD_S):
                for statement in statements:
                    with suppress(psycopg.Error):
                        connection.execute(statement.format(n=number, old=number - ALIVE))
                number += 1

    thread = threading.Thread(target=churn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def dumps_alone(servers: Servers) -> bool:
    tools = servers.postgres.tools
    command = [tools.path("pg_dump"), "-Fc", "-h", "127.0.0.1", "-p", str(servers.postgres.port), "-U", "postgres"]
    environment = {**tools.environment(), "PGPASSWORD": PASSWORD}
    done = subprocess.run([*command, DATABASE], env=environment, capture_output=True, check=False)
    return done.returncode == 0


def backs_up(servers: Servers) -> bool:
    spec = write_spec(servers, DATABASE)
    try:
        dump_database(open_stack(spec, servers.folder / "state"), DATABASE)
    except SynapseOpsError as error:
        print(f"  {error.message}: {error.detail.splitlines()[:1]}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
