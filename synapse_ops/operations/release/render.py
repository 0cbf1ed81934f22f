"""Renders every document of a spec, judges them, and writes them into a directory.

A bundle with an error is written nowhere. A directory is replaced as a whole and only when everything in it is
an unchanged former rendering: what a person put or edited there is never lost. Releases: release/store.py.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.errors import ConfigError, DriftFound, Refused, TargetNotEmpty
from synapse_ops.manifests.bundle import Bundle, bundle_of
from synapse_ops.manifests.consistency import Finding, check_consistency
from synapse_ops.manifests.targets import TARGETS
from synapse_ops.spec import Spec

INDEX = "SHA256SUMS"  # `sha256sum --check SHA256SUMS` verifies a directory by hand
LEFT_OVER_S = 3600.0
_SHOWN = 20


@dataclass(frozen=True)
class Judged:
    """Every document of a spec, and what the rules find in them. by_target: each target's own."""

    bundle: Bundle
    by_target: Mapping[str, Bundle]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Rendered:
    """A bundle without an error; `notes` are findings that stop nothing."""

    bundle: Bundle
    notes: tuple[Finding, ...]


@dataclass(frozen=True)
class Difference:
    """Paths, sorted, that a directory lacks, has otherwise, or has beyond a bundle."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.extra)

    def lines(self) -> list[str]:
        named = (("missing", self.missing), ("changed", self.changed), ("not rendered", self.extra))
        return [f"{what}: {path}" for what, paths in named for path in paths]


def judge(spec: Spec) -> Judged:
    """Return what the spec renders with every finding, errors included."""
    by_target = {target.name: bundle_of(target.render(spec)) for target in TARGETS}
    bundle = bundle_of(tuple(document for made in by_target.values() for document in made.documents))
    return Judged(bundle, by_target, check_consistency(bundle, spec))


def render(spec: Spec) -> Rendered:
    """Return the bundle. Raises Refused, naming every error, when a rule finds one."""
    return accept(judge(spec))


def accept(judged: Judged) -> Rendered:
    """Return the bundle. Raises Refused, naming every error among the findings."""
    errors = [finding for finding in judged.findings if finding.severity == "error"]
    if errors:
        raise Refused(
            f"cannot use the rendered documents, {len(errors)} errors in them; nothing was written",
            detail="\n".join(f"{finding.path}: {finding.message} ({finding.rule})" for finding in errors),
            hint="Name secrets by reference (env:NAME, file:/PATH); where the spec holds none, report this as a bug.",
        )
    return Rendered(judged.bundle, judged.findings)


def write_directory(bundle: Bundle, out: Path) -> bool:
    """Make `out` hold exactly the bundle and its index; returns whether anything changed. Safe to repeat.

    Raises TargetNotEmpty when `out` holds something that is not an unchanged former rendering.
    """
    out = out.absolute()
    _refuse_foreign(out)
    if out.is_dir() and not compare_directory(bundle, out):
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(out)
        making = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f'cannot write into "{out.parent}"', detail=str(error)) from error
    from synapse_ops.systems.host.directory_swap import put_in_place

    former: Path | None = making
    try:
        _fill(making, bundle)
        former = put_in_place(making, out)
    except OSError as error:
        hint = "It is replaced as a whole, by a rename: name a directory below a mount point, not the mount point."
        raise ConfigError(
            f'could not write the documents to "{out}"',
            detail=str(error),
            hint=hint if error.errno in (errno.EBUSY, errno.EXDEV) else "",
        ) from error
    finally:
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)
    return True


def _remove_left_overs(out: Path) -> None:
    """Remove what renderings that were killed left beside `out`: one that runs is done long before that age."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.????????"):
        if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > LEFT_OVER_S:
            shutil.rmtree(path, ignore_errors=True)


def _fill(directory: Path, bundle: Bundle) -> None:
    """Write the documents, readable for all whatever our umask is: containers' users read what compose mounts."""
    for document in bundle.documents:
        path = directory / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.data)
    (directory / INDEX).write_text(bundle.index(), encoding="utf-8", newline="\n")
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _refuse_foreign(out: Path) -> None:
    """Raise TargetNotEmpty unless `out` is absent, empty, or a former rendering of which nothing was edited."""
    if not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        return
    if out.is_symlink() or not out.is_dir():
        raise TargetNotEmpty(
            f'cannot render into "{out}": it is not a directory',
            hint="It is replaced as a whole, by a rename: name the directory itself, not a link to it.",
        )
    index = out / INDEX
    known = _read_index(index) if index.is_file() else {}
    strange = [path for path, digest in _files_of(out).items() if known.get(path) != digest]
    if strange:
        raise TargetNotEmpty(
            f'cannot render into "{out}": {len(strange)} files in it are not as they were rendered',
            detail=_listed(strange),
            hint=f"Render into another directory, or remove {out} yourself; edits belong into the spec.",
        )


def _read_index(index: Path) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in index.read_text(encoding="utf-8", errors="replace").splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _files_of(out: Path) -> dict[str, str]:
    """Return path -> sha256 of everything in a directory but its index; a link or a socket has no digest."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if name == INDEX or (path.is_dir() and not path.is_symlink()):
            continue
        is_plain = path.is_file() and not path.is_symlink()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_plain else ""
    return found


def compare_directory(bundle: Bundle, out: Path) -> Difference:
    """Return how a directory differs from a bundle. One that is absent lacks everything."""
    found = _files_of(out) if out.is_dir() else {}
    wanted = {str(document.path): document.digest for document in bundle.documents}
    return Difference(
        tuple(path for path in wanted if path not in found),
        tuple(path for path in wanted if path in found and found[path] != wanted[path]),
        tuple(path for path in found if path not in wanted),
    )


def require_directory(bundle: Bundle, out: Path) -> None:
    """Raise DriftFound when a directory is not exactly what the spec renders; write nothing."""
    difference = compare_directory(bundle, out)
    if difference:
        raise DriftFound(
            f'"{out}" differs from what the spec renders in {len(difference.lines())} documents',
            detail=_listed(difference.lines()),
            hint=f"`synapse-ops render --out {out}` writes them anew.",
        )


def _listed(lines: Sequence[str]) -> str:
    rest = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])
