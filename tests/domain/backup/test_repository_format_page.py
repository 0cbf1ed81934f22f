"""docs/repository-format.md is the specification: what the code writes stands there by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from synapse_ops.domain.backup.base_record import BaseRecord, ClusterSource, ExactPosition, TablespaceRecord
from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.dump_record import DumpRecord, DumpSource
from synapse_ops.domain.backup.proof_record import (
    BaseFindings,
    DatabaseContent,
    ExactComparison,
    ProofRecord,
    RdbFindings,
    SnapshotFindings,
    Verdict,
)
from synapse_ops.domain.backup.rdb_record import RdbRecord, RdbWindow, RedisSource
from synapse_ops.domain.backup.record import SUBJECT_FIELDS, StartedRecord
from synapse_ops.domain.backup.snapshot_record import CollectionSource, ShardRecord, SnapshotRecord, SnapshotWindow

PAGE = (Path(__file__).parents[3] / "docs" / "repository-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "model",
    [
        StartedRecord,
        DumpRecord,
        DumpSource,
        ObjectRecord,
        ProofRecord,
        SnapshotFindings,
        SnapshotRecord,
        CollectionSource,
        ShardRecord,
        SnapshotWindow,
        RdbFindings,
        RdbRecord,
        RedisSource,
        RdbWindow,
        BaseFindings,
        DatabaseContent,
        ExactComparison,
        ExactPosition,
        BaseRecord,
        ClusterSource,
        TablespaceRecord,
    ],
)
def test_every_field_of_every_document_is_specified(model: type[BaseModel]) -> None:
    """A field that a stranger cannot look up is a field that he will guess at."""
    of_kinds = {"subject": SUBJECT_FIELDS.values()} if model is StartedRecord else {}
    names = [stored for name in model.model_fields for stored in of_kinds.get(name, [name])]
    missing = [name for name in names if f"`{name}`" not in PAGE and name != "collation_version"]

    assert missing == []


def test_every_verdict_is_specified() -> None:
    """Only one of them counts, and the page says which."""
    assert [verdict for verdict in Verdict if f"`{verdict}`" not in PAGE] == []


def test_the_page_is_of_the_version_that_is_written() -> None:
    """A new version comes with its row in the table of versions."""
    newest = max(model.VERSIONS[-1] for model in (StartedRecord, DumpRecord, ProofRecord, SnapshotRecord, RdbRecord))

    assert f"version {newest}" in PAGE.splitlines()[0]
    assert f"| {newest} |" in PAGE
