"""Whether what a target judges, and what judges it, are still those of its last pass: then CI need not run it again.

    python -m tests.judged test-cluster            exit 0: nothing has changed; 1: something has
    python -m tests.judged test-cluster --passed   keep today's digest; the target does so at its end, to be committed

The digest is over the bytes that the specs of the tests render to, the tests' sources, and what installs their programs
at pinned versions. Programs of the distribution are not in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.spec import load_spec
from tests.cluster.node import why_no_node
from tests.cluster.stack_images import why_no_images
from tests.manifests.specs import CHANGES, spec_of
from tools import TOOLS

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).with_suffix(".json")
EXAMPLE = ROOT / "examples" / "synapse" / "infrastructure.yaml"


@dataclass(frozen=True)
class Judge:
    """rendered: globs of the documents that it judges. sources: globs of the files that make the judge."""

    rendered: tuple[str, ...]
    sources: tuple[str, ...]


# what the compose file mounts, and the compose file
_OF_COMPOSE = tuple(
    f"{folder}/*"
    for folder in (
        "docker", "docker/*", "postgres/*", "redis", "qdrant", "tls", "prometheus", "prometheus/rules", "alertmanager",
        "grafana/*", "grafana/*/*", "logging", "logging/compose",
    )
)  # fmt: skip

JUDGES = {
    "test-compose": Judge(
        _OF_COMPOSE,
        (
            "tests/engine/**/*",
            "tests/manifests/specs.py",
            "deploy/Dockerfile*",
            "deploy/sbom",
            "requirements/engine",
            "requirements/bootstrap.lock",
            "requirements/deploy.lock",
            "requirements/run.lock",
            "examples/synapse/*",
        ),
    ),
    "test-cluster": Judge(
        ("kubernetes/*",),
        (
            "tests/cluster/*.py",
            "tests/engine/*.py",
            "tests/engine/stand_ins/**/*",
            "tests/manifests/specs.py",
            "requirements/cluster/**/*",
            "deploy/Dockerfile*",
        ),
    ),
    "prove-release": Judge(
        ("**/*",),
        (
            "tools/*.py",
            "tests/tools/*.py",
            "tests/manifests/**/*.py",
            "requirements/manifest-tools*",
            "requirements/checkov.*",
            "requirements/kubernetes-models.*",
        ),
    ),
}


def parts_of(judge: Judge) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of all that a verdict rests on, in order."""
    specs = {name: spec_of(name) for name in CHANGES} | {"example": load_spec(EXAMPLE).spec}
    for name, spec in sorted(specs.items()):
        for document in render_bundle(spec).documents:
            if any(glob == "**/*" or document.path.match(glob) for glob in judge.rendered):
                yield f"{name}: {document.path}", document.data
    for path in sorted({path for glob in judge.sources for path in ROOT.glob(glob) if path.is_file()}):
        yield str(path.relative_to(ROOT)), path.read_bytes()


def digest_of(judge: Judge) -> str:
    whole = sha256()
    for name, data in parts_of(judge):
        whole.update(f"{name} {sha256(data).hexdigest()}\n".encode())
    return whole.hexdigest()


def _absent(target: str) -> list[str]:
    """Return what a target would have judged with, had it been there: it passes without, and has not judged all."""
    if target == "prove-release":
        return [tool.name for tool in TOOLS if tool.version() is None]
    if target == "test-cluster":
        return [reason for reason in (why_no_node(), why_no_images()) if reason]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("target", choices=sorted(JUDGES))
    parser.add_argument("--passed", action="store_true", help="keep today's digest")
    arguments = parser.parse_args()
    kept = json.loads(DATA.read_text(encoding="utf-8"))
    found = digest_of(JUDGES[arguments.target])
    absent = _absent(arguments.target)
    if arguments.passed and absent:
        print(f"{arguments.target}: not kept as passed, for not all can be judged here: {'; '.join(absent)}")
        return 0
    if arguments.passed:
        DATA.write_text(json.dumps(kept | {arguments.target: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    is_same = kept.get(arguments.target) == found
    print(
        f"{arguments.target}: {'nothing it judges, and no judge, has changed' if is_same else 'something has changed'}"
    )
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
