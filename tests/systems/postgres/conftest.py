"""One rich database per module, and what it looks like before anything is lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.rich_database import CONTENT, CREATE_ROLES
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def rich_name(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database that holds an object of every kind."""
    name = f"rich_{secrets.token_hex(4)}"
    postgres_server.execute(CREATE_ROLES)
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    postgres_server.execute(CONTENT, name)
    yield name
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
