"""The loss of any one object, or of one property of it, is seen in the structure and named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.database.structure import Structure, compare
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.structure import read_structure, structure_seen_by
from tests.rich_database import STRUCTURE_LOSSES
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def session(postgres_server: PostgresServer, rich_name: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(postgres_server.conninfo(rich_name), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def whole(session: psycopg.Connection[Any]) -> Structure:
    return structure_seen_by(session)


@pytest.mark.parametrize(("statement", "difference"), STRUCTURE_LOSSES)
def test_every_kind_of_loss_is_named(
    session: psycopg.Connection[Any], whole: Structure, statement: str, difference: str
) -> None:
    """Dropping or altering one thing yields a difference that begins with its kind and name."""
    with session.transaction(force_rollback=True):
        session.execute(statement)
        found = compare(whole, structure_seen_by(session))

    assert any(line.startswith(difference) for line in found), found


def test_nothing_lost_is_no_difference(postgres_server: PostgresServer, rich_name: str, whole: Structure) -> None:
    """Two readings of one database are equal to the last byte, on whatever connection."""
    assert read_structure(postgres_server.conninfo(rich_name)).to_json() == whole.to_json()


def test_secrets_of_foreign_servers_and_roles_are_in_no_entry(whole: Structure) -> None:
    """Passwords of user mappings are masked, and verifiers of roles are not read at all."""
    text = whole.to_json().decode()

    assert "hunter2" not in text
    assert "SCRAM-SHA-256" not in text
    assert whole.entries["user mapping: far for rich_reader"] == {"options": ["password=***", "user=***"]}
