"""Which spec is in force: the file when it is valid, else the last valid one, kept by content.

An editor's half-saved file must not take the code location down, and must not stop backups. So every valid spec is kept
as <state_dir>/spec/<digest>.yaml, and `in-force` names the newest of them. What is in force and what the file says may
differ; the check `spec_loaded_equals_file` is red while they do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from synapse_ops.errors import ConfigError
from synapse_ops.spec import LoadedSpec, load_spec

_FOLDER = "spec"
_IN_FORCE = "in-force"


@dataclass(frozen=True)
class SpecInForce:
    """loaded: what is in force; its `path` is the kept copy. file_path: what the operator edits.

    fault: why the file is not in force; None when it is.
    """

    loaded: LoadedSpec
    file_path: Path
    fault: ConfigError | None


def read_spec_in_force(file_path: Path, state_dir: Path) -> SpecInForce:
    """Return the spec of the file, keeping a copy of it, or the last valid one when the file is not valid.

    Raises the file's ConfigError when no valid one was kept.
    """
    folder = state_dir / _FOLDER
    try:
        content = _read(file_path)
        loaded = _load(file_path, content)
    except ConfigError as fault:
        kept = _kept(folder)
        if kept is None:
            raise
        return SpecInForce(_load(kept, _read(kept)), file_path, fault)
    return SpecInForce(replace(loaded, path=_keep(folder, loaded.digest, content)), file_path, None)


def compare_with_file(file_path: Path, digest: str) -> str:
    """Return "" when the file is valid and means what `digest` names, else why not: every fault, a line each."""
    try:
        found = load_spec(file_path).digest
    except ConfigError as fault:
        return "\n".join(
            [f"The file is not valid, an older one stays in force: {fault.message}", *fault.detail.splitlines()]
        )
    if found == digest:
        return ""
    return f"The file is valid and is not what is loaded: it has digest {found[:12]}, loaded is {digest[:12]}"


@lru_cache(maxsize=4)  # every tick of a sensor asks, and reading YAML takes 45 ms
def _load(path: Path, content: bytes) -> LoadedSpec:
    """Return what the file says. content: what it holds now; the loader reads the file itself.

    Raises ConfigError for a file that is saved meanwhile: what was loaded would be kept for another content.
    """
    loaded = load_spec(path)
    if _read(path) != content:
        raise ConfigError(f'spec "{path}" changed while it was read', hint="It is read again in a moment.")
    return loaded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'cannot read spec "{path}"', detail=str(error)) from error


def _keep(folder: Path, digest: str, content: bytes) -> Path:
    """Store the content under its digest and name it as in force; each step is a rename: a cut leaves old or new."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = folder / f"{digest}.yaml"
    for target, data in ((kept, content), (folder / _IN_FORCE, digest.encode("ascii"))):
        if not target.exists() or target.read_bytes() != data:
            with NamedTemporaryFile(dir=folder, prefix=f"{target.name}.", delete=False) as partial:
                partial.write(data)  # a name of our own: every process that opens the spec keeps it
            Path(partial.name).replace(target)
    return kept


def _kept(folder: Path) -> Path | None:
    try:
        digest = (folder / _IN_FORCE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    kept = folder / f"{digest}.yaml"
    return kept if kept.is_file() else None
