"""The Dagster home of a state directory, and the environment that every Dagster process of it needs.

dagster.yaml and workspace.yaml are one of each for every place; what differs is in the environment that is built here.
Storage is the `ops` server of the embedded stack when the state directory has one, else what the operator's own
DAGSTER_PG_* variables name. Passwords travel in the environment of our own children and nowhere else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

from synapse_ops.errors import ConfigError
from synapse_ops.redaction import remember

SPEC_VARIABLE = "SYNAPSE_SPEC"
STATE_DIR_VARIABLE = "SYNAPSE_STATE_DIR"
EMBEDDED_VARIABLE = "SYNAPSE_EMBEDDED"
HOME_VARIABLE = "DAGSTER_HOME"

GRPC_TIMEOUT_S = 300  # of a request to the code server; Dagster's 60 s passed while 30 processes shared two cores
_STORAGE_VARIABLES = ("DAGSTER_PG_HOST", "DAGSTER_PG_PORT", "DAGSTER_PG_USER", "DAGSTER_PG_PASSWORD", "DAGSTER_PG_DB")
_PASSWORD_FILE_VARIABLE = "DAGSTER_PG_PASSWORD_FILE"  # noqa: S105 - a name, as PostgreSQL's image has it
_STORAGE_URL_FILE = "secrets/dagster-storage.url"  # written by `synapse-ops local up`


@dataclass(frozen=True)
class DagsterHome:
    """Where one Dagster instance keeps its files: `dir` is DAGSTER_HOME, `workspace` the workspace file."""

    state_dir: Path
    spec_path: Path
    dir: Path
    workspace: Path
    is_embedded: bool


def has_embedded_stack(state_dir: Path) -> bool:
    """Return whether the embedded stack was started in a state directory; its `ops` server then is our storage."""
    return (state_dir / _STORAGE_URL_FILE).is_file()


def prepare_home(state_dir: Path, spec_path: Path) -> DagsterHome:
    """Make DAGSTER_HOME below the state directory and put the instance's files there; safe to repeat."""
    home = state_dir.resolve() / "dagster"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        _copy_when_changed(shipped_file(name), home / name)
    is_embedded = has_embedded_stack(state_dir)
    return DagsterHome(state_dir.resolve(), spec_path.resolve(), home, home / "workspace.yaml", is_embedded)


def shipped_file(name: str) -> Path:
    """Return dagster.yaml or workspace.yaml: of the checkout, or of the installed package."""
    package = Path(str(files("synapse_ops")))
    for candidate in (package.parent / name, package / name):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{name} is neither in {package.parent} nor in {package}", hint="Install synapse-ops again.")


def dagster_environment(
    home: DagsterHome, *, code_port: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of every Dagster process: the given one, and what dagster.yaml and workspace.yaml ask for.

    Raises ConfigError when storage is neither embedded nor named, or the file with its password cannot be read.
    """
    environ = {**environ, **_password_of_file(environ)}
    is_named = all(name in environ for name in _STORAGE_VARIABLES)
    environment = {**environ, **(_embedded_storage(home.state_dir) if home.is_embedded and not is_named else {})}
    missing = [name for name in _STORAGE_VARIABLES if name not in environment]
    if missing:
        raise ConfigError(
            "Dagster's own storage is not named: " + ", ".join(missing),
            hint="Set them to a PostgreSQL database other than the protected one, or start `synapse-ops local up`.",
        )
    environment.update(
        {
            HOME_VARIABLE: str(home.dir),
            SPEC_VARIABLE: str(home.spec_path),
            STATE_DIR_VARIABLE: str(home.state_dir),
            EMBEDDED_VARIABLE: "1" if home.is_embedded else "0",
            "SYNAPSE_CODE_HOST": "127.0.0.1",
            "SYNAPSE_CODE_PORT": str(code_port),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_GRPC_TIMEOUT_SECONDS": environ.get("DAGSTER_GRPC_TIMEOUT_SECONDS", str(GRPC_TIMEOUT_S)),
        }
    )
    remember(environment["DAGSTER_PG_PASSWORD"])
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile every import again: 1.3 s for 0.5 s
    return environment


def _copy_when_changed(source: Path, target: Path) -> None:
    if not target.exists() or target.read_bytes() != source.read_bytes():
        partial = target.with_suffix(".part")
        shutil.copyfile(source, partial)
        partial.replace(target)


def _password_of_file(environ: Mapping[str, str]) -> dict[str, str]:
    named = environ.get(_PASSWORD_FILE_VARIABLE)
    if not named or "DAGSTER_PG_PASSWORD" in environ:
        return {}
    try:
        return {"DAGSTER_PG_PASSWORD": Path(named).read_text(encoding="utf-8").rstrip("\n")}
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(
            f"could not read the password of Dagster's storage from {named}: {fault}",
            hint=f"{_PASSWORD_FILE_VARIABLE} names a file that holds nothing else.",
        ) from None


def _embedded_storage(state_dir: Path) -> dict[str, str]:
    """Return DAGSTER_PG_* of the embedded stack's `ops` server."""
    address = urlsplit((state_dir / _STORAGE_URL_FILE).read_text(encoding="utf-8").strip())
    return {
        "DAGSTER_PG_HOST": address.hostname or "",
        "DAGSTER_PG_PORT": str(address.port),
        "DAGSTER_PG_USER": unquote(address.username or ""),
        "DAGSTER_PG_PASSWORD": unquote(address.password or ""),
        "DAGSTER_PG_DB": address.path.removeprefix("/"),
    }
