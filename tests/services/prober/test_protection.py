"""What the prober reads from the repositories: the moments that alerts compare with the schedules."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from synapse_ops.services.prober.protection import protection
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import store_backup, store_snapshot


def test_a_subject_is_told_under_its_own_kind_only(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot beside the dumps is not a database; an alert would ask for its dump for ever."""
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:TEST_STORE'}}\n"
        f"backup:\n  database: {{destination: '{bucket_url}'}}\n"
        f"  vectors: {{destination: '{bucket_url[:-1]}-vectors/'}}\n"
    )
    store, now = ObjectStore(bucket_url, object_store_access), datetime.now(UTC).replace(microsecond=0)
    store_backup(store, now)
    store_snapshot(store, now)

    read = protection(spec, tmp_path / "state")

    assert list(read["database"]["subjects"]) == ["synapse"]
