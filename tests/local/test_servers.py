"""The servers that tests stand on are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from synapse_ops.errors import SynapseOpsError
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess


def test_a_fresh_database_is_empty_and_is_served_by_postgresql_17_with_checksums(
    fresh_database: Callable[..., str],
) -> None:
    """Each test gets databases of its own on a real server of the major version that the embedded stack runs."""
    with psycopg.connect(fresh_database()) as connection:
        tables = connection.execute("select count(*) from pg_stat_user_tables").fetchone()
        checksums = connection.execute("show data_checksums").fetchone()

        assert connection.info.server_version // 10000 == 17
        assert tables == (0,)
        assert checksums == ("on",)


def test_the_store_of_tests_keeps_what_is_put_and_refuses_a_wrong_secret(
    bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Tests of authentication need a store that checks signatures."""
    store = ObjectStore(bucket_url, object_store_access)
    store.put_bytes("a/b", b"kept")

    assert store.read_bytes("a/b") == b"kept"
    assert [info.key for info in store.list_objects()] == ["a/b"]
    wrong = StoreAccess(endpoint=object_store_access.endpoint, access_key="test-access", secret_key="wrong")
    with pytest.raises(SynapseOpsError, match="refuse"):
        ObjectStore(bucket_url, wrong).read_bytes("a/b")
