"""The example is true: data of every kind, the same for the same seed, and a ledger of what was acknowledged."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from synapse_ops.local.example_data import load_example_data
from synapse_ops.local.servers.api import EXAMPLE, answers_health
from synapse_ops.systems.host.processes import free_ports

READY_TIMEOUT_S = 60.0
CHECKSUM = """select md5(string_agg(d::text, '' order by id)) from (
  select id, author_id, title, body, state, metadata, labels, score, embedding, created_at from library.document) d"""


def value(conninfo: str, statement: str) -> object:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(statement).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def test_the_same_seed_gives_the_same_rows_and_a_second_load_changes_nothing(
    fresh_database: Callable[..., str],
) -> None:
    """Seeded, and idempotent: a demo may run it every time."""
    one, two, other = fresh_database(), fresh_database(), fresh_database()
    first = load_example_data(one, "1MB", seed=7)
    load_example_data(two, "1MB", seed=7)
    load_example_data(other, "1MB", seed=8)

    again = load_example_data(one, "5MB", seed=9)

    assert (first.did_load, again.did_load) == (True, False)
    assert value(one, CHECKSUM) == value(two, CHECKSUM)
    assert value(one, CHECKSUM) != value(other, CHECKSUM)


def test_the_data_hold_every_kind_of_object_that_a_backup_must_carry(fresh_database: Callable[..., str]) -> None:
    """What a real database has: one of each, so that a backup which forgets a kind is caught."""
    conninfo = fresh_database()
    load_example_data(conninfo, "1MB")
    present = {
        "large objects": "select count(*) from pg_largeobject_metadata",
        "extensions": "select count(*) from pg_extension where extname <> 'plpgsql'",
        "partitioned tables": "select count(*) from pg_partitioned_table",
        "generated columns": "select count(*) from pg_attribute where attgenerated = 's'",
        "identity columns": "select count(*) from pg_attribute where attidentity <> ''",
        "policies": "select count(*) from pg_policy",
        "disabled triggers": "select count(*) from pg_trigger where tgenabled = 'D'",
        "unvalidated constraints": "select count(*) from pg_constraint where not convalidated",
        "exclusion constraints": "select count(*) from pg_constraint where contype = 'x'",
        "materialised views": "select count(*) from pg_matviews",
        "enums": "select count(*) from pg_enum",
        "domains": "select count(*) from pg_type where typtype = 'd' and typnamespace = 'library'::regnamespace",
        "aggregates": "select count(*) from pg_aggregate where aggfnoid = 'billing.product'::regproc",
        "statistics": "select count(*) from pg_statistic_ext",
        "default privileges": "select count(*) from pg_default_acl",
        "column privileges": "select count(*) from pg_attribute where attacl is not null",
        "settings by role and database": "select count(*) from pg_db_role_setting where setdatabase <> 0",
        "inheritance": "select count(*) from pg_inherits",
        "names beyond ASCII": "select count(*) from pg_class where relname ~ '[^ -~]'",
        "bytea": "select count(*) from library.attachment where octet_length(content) > 0",
        "comments": "select count(*) from pg_description d join pg_class c on c.oid = d.objoid where c.oid > 16384",
    }

    absent = [kind for kind, statement in present.items() if value(conninfo, statement) == 0]

    assert absent == []


@dataclass(frozen=True)
class Api:
    port: int
    ledger: Path

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


@pytest.fixture
def api(tmp_path: Path, fresh_database: Callable[..., str]) -> Iterator[Api]:
    [port] = free_ports(1)
    conninfo = tmp_path / "conninfo"
    conninfo.write_text(fresh_database())
    ledger = tmp_path / "ledger" / "acknowledged.jsonl"
    environment = os.environ | {
        "SYNAPSE_API_PORT": str(port),
        "SYNAPSE_API_DATABASE_FILE": str(conninfo),
        "SYNAPSE_API_LEDGER": str(ledger),
    }
    process = subprocess.Popen([sys.executable, EXAMPLE], env=environment)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not answers_health(port) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    yield Api(port, ledger)
    process.kill()
    process.wait()


def test_what_the_application_acknowledged_is_in_the_ledger_and_in_the_database(api: Api) -> None:
    """A reply comes after the commit and after the ledger's line."""
    replies = [json.loads(api.ask("POST", "/generate", {"prompt": f"größe {n}"})[1]) for n in range(5)]

    lines = [json.loads(line) for line in api.ledger.read_text().splitlines()]
    assert [(line["id"], line["sha256"]) for line in lines] == [(reply["id"], reply["sha256"]) for reply in replies]
    status, body = api.ask("GET", f"/documents/{replies[3]['id']}")
    assert (status, json.loads(body)["text"]) == (200, replies[3]["text"])


def test_the_application_tells_health_and_metrics_and_refuses_an_empty_prompt(api: Api) -> None:
    """What the probes and Prometheus read."""
    api.ask("POST", "/generate", {"prompt": "x"})

    assert api.ask("GET", "/health")[0] == 200
    assert json.loads(api.ask("GET", "/health/db")[1])["takes_writes"] is True
    assert api.ask("POST", "/generate", {"prompt": ""})[0] == 422
    status, text = api.ask("GET", "/metrics")
    assert status == 200
    assert "synapse_documents_acknowledged_total 1\n" in text
    assert 'synapse_requests_total{path="/generate",status="422"} 1' in text
