"""The options that many commands share, and what they open.

With `--repository` a command works on the repository alone: no spec, no Dagster, only a URL and the AWS_* variables.
Without it the spec names the repository.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack

Command = TypeVar("Command", bound=Callable[..., Any])

SPEC_NAME = "infrastructure.yaml"

_spec_option = click.option(
    "--spec",
    "spec_path",
    type=click.Path(path_type=Path),
    envvar="SYNAPSE_SPEC",
    help=f"The spec. Default: {SPEC_NAME} of the state directory, then of the current one.",
)


def state_dir_option(meaning: str) -> Callable[[Any], Any]:
    """Return --state-dir. meaning: what the command keeps there, for its help."""
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SYNAPSE_STATE_DIR",
        default=Path(".synapse"),
        show_default=True,
        help=meaning,
    )


def timeout_option(meaning: str) -> Callable[[Any], Any]:
    """Return --timeout, a number of seconds; the command takes `timeout_s: float | None`."""
    return click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), help=f"Seconds for {meaning}")


def work_dir_option(meaning: str) -> Callable[[Any], Any]:
    """Return --work-dir; the command takes `work_dir: Path | None`, and None means `place.work_dir`."""
    return click.option(
        "--work-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"{meaning} Default: proof/ of the state directory.",
    )


_state_dir_option = state_dir_option("Where this host keeps its own files: state, caches, scratch.")
_repository_options = (
    click.option(
        "--repository", "repository_url", envvar="SYNAPSE_REPOSITORY", help="s3://bucket/prefix/; no spec needed."
    ),
    click.option("--endpoint", envvar="AWS_ENDPOINT_URL", help="URL of an S3 store other than AWS."),
    click.option("--region", envvar="AWS_REGION", help="Region of the bucket."),
    click.option(
        "--ca-file", type=click.Path(path_type=Path, dir_okay=False), help="Certificate authority of the store."
    ),
)

_kind_options = (
    click.option(
        "--vectors", "of_vectors", is_flag=True, help="The spec's repository of collections, not that of databases."
    ),
    click.option("--redis", "of_redis", is_flag=True, help="The spec's repository of RDB snapshots of Redis."),
)


@dataclass(frozen=True)
class Place:
    """What the shared options of one call said."""

    spec_path: Path | None
    state_dir: Path
    repository_url: str | None = None
    endpoint: str | None = None
    region: str | None = None
    ca_file: Path | None = None
    of_vectors: bool = False
    of_redis: bool = False

    def stack(self) -> Stack:
        """Open the spec. Raises ConfigError when there is none, or for its faults."""
        from synapse_ops.operations.stack import open_stack

        return open_stack(self.found_spec(), self.state_dir.absolute())

    def found_spec(self) -> Path:
        """Return the path of the spec: named, or the first that exists of the two defaults."""
        if self.spec_path is not None:
            return self.spec_path
        for candidate in (self.state_dir / SPEC_NAME, Path(SPEC_NAME)):
            if candidate.is_file():
                return candidate
        raise ConfigError(
            f"no spec given, and neither {self.state_dir / SPEC_NAME} nor ./{SPEC_NAME} exists",
            hint="Name it with --spec or SYNAPSE_SPEC, or name a repository with --repository s3://bucket/prefix/.",
        )

    def repository(self) -> Repository:
        """Open the repository that the options or the spec name: the databases', or that of --vectors or --redis."""
        if self.of_vectors and self.of_redis:
            raise click.UsageError("--vectors and --redis exclude one another")
        if self.repository_url is None:
            stack = self.stack()
            if self.of_redis:
                return stack.redis_repository()
            return stack.vector_repository() if self.of_vectors else stack.database_repository()
        from synapse_ops.operations.repository import open_repository
        from synapse_ops.systems.object_store import StoreAccess

        access = StoreAccess.from_environment()
        access = replace(
            access,
            endpoint=self.endpoint or access.endpoint,
            region=self.region or access.region,
            ca_file=self.ca_file or access.ca_file,
        )
        return open_repository(self.repository_url, access, state_dir=self.state_dir.absolute())

    def vector_repository(self) -> Repository:
        """Open the repository that the options name, else that of backup.vectors.destination."""
        return replace(self, of_vectors=True).repository()

    def redis_repository(self) -> Repository:
        """Open the repository that the options name, else that of backup.redis.destination."""
        return replace(self, of_redis=True).repository()

    @property
    def kind_option(self) -> str:
        """Return the option that names the same kind of backups, with a space before it; the databases' has none."""
        return " --vectors" if self.of_vectors else " --redis" if self.of_redis else ""

    @property
    def work_dir(self) -> Path:
        """Where throwaway servers and staged backups lie for a while."""
        return self.state_dir.absolute() / "proof"

    def proof_timeout_s(self) -> float:
        """Return `proof.timeout` of the spec, or its default where the command works on a repository alone."""
        from synapse_ops.operations.proof import DEFAULT_TIMEOUT_S

        if self.repository_url is not None and self.spec_path is None:
            return DEFAULT_TIMEOUT_S
        return self.stack().spec.proof.timeout.total_seconds()

    def age_identities(self) -> tuple[str, ...]:
        """Return the age secret keys at hand: SYNAPSE_AGE_IDENTITY_FILE, or what the spec refers to; may be empty."""
        from synapse_ops.operations.stack import parse_age_identities

        named = os.environ.get("SYNAPSE_AGE_IDENTITY_FILE")
        if named:
            try:
                return parse_age_identities(Path(named).read_text(encoding="utf-8"), origin=named)
            except OSError as error:
                raise ConfigError(f"cannot read the age identity file {named}", detail=str(error)) from error
        if self.repository_url is not None and self.spec_path is None:
            return ()
        return self.stack().age_identities()


def stack_options(command: Command) -> Command:
    """Add --spec and --state-dir; the command takes `place: Place`."""
    return _with_place(command, (_spec_option, _state_dir_option))


def repository_options(command: Command) -> Command:
    """Add --spec, --state-dir, --repository, --endpoint, --region and --ca-file; the command takes `place: Place`."""
    return _with_place(command, (_spec_option, _state_dir_option, *_repository_options))


def any_repository_options(command: Command) -> Command:
    """Add what `repository_options` adds, --vectors and --redis: the command works on backups of every kind."""
    return _with_place(command, (_spec_option, _state_dir_option, *_repository_options, *_kind_options))


def _with_place(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    from functools import wraps

    @wraps(command)
    def with_place(*args: Any, spec_path: Path | None, state_dir: Path, **rest: Any) -> Any:
        names = ("repository_url", "endpoint", "region", "ca_file", "of_vectors", "of_redis")
        chosen = {name: rest.pop(name) for name in names if name in rest}
        return command(*args, place=Place(spec_path, state_dir, **chosen), **rest)

    wrapped: Any = with_place
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
