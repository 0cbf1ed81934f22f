"""What a recovered cluster must equal, database by database."""

from __future__ import annotations

from synapse_ops.domain.database.cluster_fingerprint import ClusterFingerprint, compare
from synapse_ops.domain.database.fingerprint import Fingerprint, TableContent
from synapse_ops.domain.database.lsn import Lsn


def content(rows: int) -> Fingerprint:
    return Fingerprint(17, "7", tables={"public.ledger": TableContent(rows, str(rows))})


EXPECTED = ClusterFingerprint(Lsn.parse("0/5012DD0"), {"a": content(1), "b": content(2)})


def test_it_is_read_as_it_was_written() -> None:
    found = ClusterFingerprint.from_json(EXPECTED.to_json())

    assert found == EXPECTED
    assert (found.table_count, found.row_count) == (2, 3)


def test_each_difference_names_its_database_and_table() -> None:
    """A database that one side lacks is a difference as well."""
    assert compare(EXPECTED, {"a": content(1), "b": content(2)}) == ()
    assert compare(EXPECTED, {"b": content(3), "c": content(1)}) == (
        "database a: missing",
        "b: table public.ledger: 3 rows, expected 2",
        "database c: not on the standby",
    )
