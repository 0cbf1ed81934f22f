"""The images of the rendered stack: the engine of tests/engine makes them, and they are kept until a source changes."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec import load_spec
from tests.engine.engine import ROOT, running_engine, why_no_engine
from tests.engine.images import (
    CACHE,
    EXAMPLE,
    OTHERS,
    STORES,
    build_application,
    build_images,
    build_synapse_ops,
    import_bases,
)

GIVEN = "SYNAPSE_TEST_IMAGES"  # an archive that was made before, which is then not made here
_POSTGRES = STORES["postgres"]
_BUILT = {
    **STORES,
    # in a cluster it runs as another user than its own, whom initdb must know by a name; the official image fakes one
    "postgres": replace(_POSTGRES, steps=f"{_POSTGRES.steps}\nRUN useradd --uid 10001 --no-create-home cluster\n"),
    "postgres_exporter": OTHERS["postgres_exporter"],
    "redis_exporter": OTHERS["redis_exporter"],
}
_SOURCES = ("tests/engine/**/*", "tests/cluster/stack_images.py", "synapse_ops/**/*.py", "docs/runbooks/*", "deploy/*",
            "examples/synapse/*", "requirements/*.lock", "pyproject.toml")  # fmt: skip


def why_no_images() -> str | None:
    """Return why the images cannot be made here, None when they can."""
    return None if os.environ.get(GIVEN) else why_no_engine()


def stack_images(folder: Path) -> Path:
    """Return an archive with every image that the example spec's stack needs, but the exporter beside volumes.

    folder: where the engine works, when they are made: five minutes on two cores.
    """
    given = os.environ.get(GIVEN)
    if given:
        return Path(given)
    spec = load_spec(EXAMPLE / "infrastructure.yaml").spec
    bundle = render_bundle(spec)
    mark = sha256(bundle.by_path["docker/Dockerfile"].data)
    for path in _sources():
        mark.update(f"{path.relative_to(ROOT)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    made = CACHE / f"stack-{mark.hexdigest()[:16]}.tar"
    if made.exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob("stack-*.tar"):
        old.unlink(missing_ok=True)
    making = made.with_name(f"making-{secrets.token_hex(4)}.tar")
    try:
        with running_engine(folder) as engine, tempfile.TemporaryDirectory() as rendered:
            write_directory(bundle, Path(rendered) / "rendered")
            import_bases(engine, python=spec.docker.base_image)
            build_synapse_ops(engine)
            build_application(engine, Path(rendered) / "rendered", spec.kubernetes.image)
            build_images(engine, spec, _BUILT)
            names = (getattr(spec.docker.images, field) for field in _BUILT)
            engine.save(making, spec.docker.images.synapse_ops, spec.kubernetes.image, *names)
        making.rename(made)
    finally:
        making.unlink(missing_ok=True)
    return made


def _sources() -> Iterator[Path]:
    found = {
        path for glob in _SOURCES for path in ROOT.glob(glob) if path.is_file() and "__pycache__" not in path.parts
    }
    yield from sorted(found)
