"""Rendered documents are written whole or not at all, and never over somebody's work."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from synapse_ops.errors import DriftFound, TargetNotEmpty
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import require_directory, write_directory
from synapse_ops.operations.release.store import store_release
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.manifests.specs import spec_of

SCHEMA = Path(__file__).parents[2] / "docs" / "json" / "render.schema.json"
LOADED, _ = check_text("name: synapse\n", Path("spec.yaml"))


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "synapse_ops", "render", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_a_directory_is_written_once_and_checked_by_sha256sum(tmp_path: Path) -> None:
    """The index is what `sha256sum --check` reads, so that a person can verify a directory without this tool."""
    bundle, out = render_bundle(spec_of("default")), tmp_path / "deep" / "rendered"

    assert write_directory(bundle, out)
    assert not write_directory(bundle, out)

    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=False, timeout=30)
    assert checked.returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["rendered"]


def test_containers_may_read_what_a_careful_umask_writes(tmp_path: Path) -> None:
    """Compose mounts the files into containers of other users."""
    former = os.umask(0o077)
    try:
        write_directory(render_bundle(spec_of("default")), tmp_path / "rendered")
    finally:
        os.umask(former)

    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "rendered").rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert (tmp_path / "rendered" / "docker").stat().st_mode & 0o777 == 0o755


def test_what_a_killed_rendering_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    """Each kill -9 would leave a hidden copy of everything, for ever. One that may still be written is left alone."""
    old, new, other = (tmp_path / name for name in (".rendered.abcd1234", ".rendered.efgh5678", ".other.abcd1234"))
    for path in (old, new, other):
        (path / "docker").mkdir(parents=True)
    for path in (old, other):
        os.utime(path, (1, 1))

    write_directory(render_bundle(spec_of("default")), tmp_path / "rendered")

    assert {path.name for path in tmp_path.iterdir()} == {"rendered", new.name, other.name}


def test_another_spec_replaces_the_whole_directory(tmp_path: Path) -> None:
    """A document that the new spec does not have is gone: what is there is one rendering, never a mixture."""
    out = tmp_path / "rendered"
    write_directory(render_bundle(spec_of("default")), out)

    write_directory(render_bundle(spec_of("stores elsewhere")), out)

    assert not (out / "kubernetes" / "30-database.yaml").exists()
    require_directory(render_bundle(spec_of("stores elsewhere")), out)
    assert [path.name for path in tmp_path.iterdir()] == ["rendered"]


@pytest.mark.parametrize("work", ["edited", "added", "linked"])
def test_a_person_s_work_in_the_directory_is_never_lost(tmp_path: Path, work: str) -> None:
    """An edit, a file or a link that no rendering made stops the next one."""
    out = tmp_path / "rendered"
    write_directory(render_bundle(spec_of("default")), out)
    if work == "edited":
        (out / "docker" / "Dockerfile").write_text("FROM scratch\n")
    elif work == "added":
        (out / "notes.txt").write_text("mine")
    else:
        (out / "link").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    with pytest.raises(TargetNotEmpty, match="1 files in it are not as they were rendered"):
        write_directory(render_bundle(spec_of("gateway")), out)

    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_difference_is_named_by_its_documents(tmp_path: Path) -> None:
    """`--check` says which documents differ and how; nothing is written."""
    out = tmp_path / "rendered"
    write_directory(render_bundle(spec_of("default")), out)

    with pytest.raises(DriftFound) as found:
        require_directory(render_bundle(spec_of("TLS 1.3 only")), out)

    assert "changed: tls/nginx.conf" in found.value.detail
    assert "changed: firewall/nftables.conf" not in found.value.detail


def test_a_release_is_stored_once_below_its_digest(object_store_access: StoreAccess, bucket_url: str) -> None:
    """release.json is written last and names every document; the same bundle is the same release."""
    assert LOADED is not None
    store = ObjectStore(f"{bucket_url}releases/", object_store_access)
    bundle = render_bundle(LOADED.spec)

    assert store_release(bundle, LOADED, store)
    assert not store_release(bundle, LOADED, store)

    record = json.loads(store.read_bytes(f"{bundle.digest}/release.json"))
    assert record["digest"] == bundle.digest
    for document in record["documents"]:
        data = store.read_bytes(f"{bundle.digest}/{document['path']}")
        assert hashlib.sha256(data).hexdigest() == document["sha256"]
    assert len(list(store.list_objects())) == len(record["documents"]) + 1


def test_the_command_writes_checks_and_refuses(tmp_path: Path) -> None:
    """0 written or equal, 16 different, 2 for a spec with a fault, which writes nothing."""
    (tmp_path / "infrastructure.yaml").write_text("name: acme\n")

    written = call("--out", "rendered", "--json", cwd=tmp_path)
    equal = call("--out", "rendered", "--check", cwd=tmp_path)
    (tmp_path / "infrastructure.yaml").write_text("name: acme\nserver: {port: 9000}\n")
    differs = call("--out", "rendered", "--check", cwd=tmp_path)
    (tmp_path / "infrastructure.yaml").write_text("name: acme\nserver: {port: 90000}\n")
    faulty = call("--out", "other", cwd=tmp_path)

    assert (written.returncode, equal.returncode, differs.returncode, faulty.returncode) == (0, 0, 16, 2)
    assert json.loads(written.stdout)["name"] == "acme"
    jsonschema.validate(json.loads(written.stdout), json.loads(SCHEMA.read_text()))
    assert "changed: docker/Dockerfile" in differs.stderr
    assert not (tmp_path / "other").exists()


def test_rendering_reads_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference is never resolved: rendering works where no secret is, and none can end up in a document."""
    marker = "Zq7-never-in-a-document"
    for name in ("SYNAPSE_ADMIN_DSN", "SYNAPSE_WEBHOOK_TOKEN", "QDRANT_KEY", "REDIS_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, marker)

    documents = render_bundle(spec_of("locked stores")).documents

    assert not any(marker in document.text for document in documents)
