"""A monitoring document is rendered again exactly when a block that it reads has changed."""

from __future__ import annotations

from typing import cast

import pytest

from synapse_ops.manifests.monitoring.targets import MONITORING, Row
from synapse_ops.spec import Spec
from synapse_ops.spec.document import default_spec
from tests.manifests.recording_spec import RecordingSpec


@pytest.mark.parametrize("row", MONITORING, ids=lambda row: str(row[0]))
def test_a_target_touches_exactly_what_it_says_it_reads(row: Row) -> None:
    """A block that is read and not said would leave a stale document; one said and not read renders for nothing."""
    name, render, reads, _, _ = row
    recording = RecordingSpec(default_spec())

    documents = render(cast(Spec, recording))

    assert recording.touched == reads, name
    assert frozenset().union(*(document.reads for document in documents)) <= reads
    assert documents == render(default_spec())
