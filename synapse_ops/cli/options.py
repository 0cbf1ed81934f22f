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

from synapse_ops.cli.stack_hint import add_stack_hint
from synapse_ops.errors import ConfigError, SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import BackupPlace
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.backup_kinds import BackupKind
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
        callback=_refuse_circle,
        help=meaning,
    )


def _refuse_circle(_: click.Context, __: click.Parameter, path: Path) -> Path:
    try:
        path.resolve()
    except (RuntimeError, OSError):  # which of the two depends on Python's version
        raise ConfigError(
            f'state directory "{path}" is a circle of symbolic links', hint="Name another one with --state-dir."
        ) from None
    return path


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


_state_dir_option = state_dir_option("Directory for state, caches and scratch files of this host.")
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


@dataclass(frozen=True)
class Source:
    """One repository, and which of its backups are meant.

    label: as a person names them: `database/NAME`, `database`, or the repository's URL.
    kind, name: only backups of this kind and subject; None for all.
    """

    label: str
    repository: Repository
    kind: BackupKind | None = None
    name: str | None = None

    def catalog(self) -> Catalog:
        """Read what is meant. Raises ConfigError that lists the subjects when the one named has nothing there."""
        from synapse_ops.operations.backup.catalog import read_catalog

        catalog = read_catalog(self.repository)
        meant = catalog.only(self.kind.name if self.kind is not None else None, self.name)
        if self.name is not None and not meant.backups and not meant.left_overs:
            places = {row.place for row in catalog.backups} | {row.place for row in catalog.left_overs}
            raise ConfigError(
                f"there is no backup of {self.label} in {self.repository.url}",
                detail="subjects there: " + (", ".join(sorted(set(map(subject_of, places)))) or "none"),
            )
        return meant


def subject_of(place: BackupPlace) -> str:
    """Return a backup's subject as a person names it: `database/NAME`; of WAL its timeline."""
    from synapse_ops.domain.backup.layout import WAL
    from synapse_ops.operations.backup_kinds import kind_named

    if place.kind == WAL:
        return f"WAL, {place.subject}"
    return f"{kind_named(place.kind).word}/{place.subject}"


@dataclass(frozen=True)
class Place:
    """What the shared options of one call said."""

    spec_path: Path | None
    state_dir: Path
    repository_url: str | None = None
    endpoint: str | None = None
    region: str | None = None
    ca_file: Path | None = None

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

    @property
    def has_spec(self) -> bool:
        """Whether a spec is read: not with --repository, unless --spec names one too."""
        return self.repository_url is None or self.spec_path is not None

    def sources(self, subject: str | None = None) -> tuple[Source, ...]:
        """Return what a command works on: one source, or without a subject one for each repository of the spec.

        Raises ConfigError for a subject of another form and for a kind that the spec does not have backed up.
        """
        from synapse_ops.operations.backup_kinds import kinds_of, parse_subject

        if subject is not None:
            named = parse_subject(subject)
            repository = self._named_repository() or named.kind.repository(self.stack())
            return (Source(str(named), repository, named.kind, named.name),)
        alone = self._named_repository()
        if alone is not None:
            return (Source(alone.url, alone),)
        stack = self.stack()
        found: dict[str, Source] = {}  # by URL: kinds that share a repository are one source
        for kind in kinds_of(stack.spec):
            repository = kind.repository(stack)
            found.setdefault(repository.url, Source(kind.word, repository))
        return tuple(found.values())

    def locate(self, backup_id: str) -> tuple[Repository, BackupPlace, BackupKind]:
        """Return where a backup lies, of whatever kind; raises ConfigError with the nearest ids."""
        from synapse_ops.operations.backup.catalog import locate_backup
        from synapse_ops.operations.backup_kinds import kind_named

        repository, place = locate_backup([source.repository for source in self.sources()], backup_id)
        return repository, place, kind_named(place.kind)

    def _named_repository(self) -> Repository | None:
        """Open the repository of --repository; contacts nothing yet."""
        if self.repository_url is None:
            return None
        from synapse_ops.operations.repository import open_repository
        from synapse_ops.systems.s3.store import StoreAccess

        access = StoreAccess.from_environment()
        access = replace(
            access,
            endpoint=self.endpoint or access.endpoint,
            region=self.region or access.region,
            ca_file=self.ca_file or access.ca_file,
        )
        return open_repository(self.repository_url, access, state_dir=self.state_dir.absolute())

    @property
    def work_dir(self) -> Path:
        """Where throwaway servers and staged backups lie for a while."""
        return self.state_dir.absolute() / "proof"

    def proof_timeout_s(self) -> float:
        """Return `proof.timeout` of the spec, or its default where the command works on a repository alone."""
        from synapse_ops.operations.backup.proving import DEFAULT_TIMEOUT_S

        if not self.has_spec:
            return DEFAULT_TIMEOUT_S
        return self.stack().spec.proof.timeout.total_seconds()

    def age_identities(self) -> tuple[str, ...]:
        """Return the age secret keys at hand: SYNAPSE_AGE_IDENTITY_FILE, or what the spec refers to; may be empty."""
        from synapse_ops.operations.stack import parse_age_identities
        from synapse_ops.redaction import remember
        from synapse_ops.spec.secret_file import read_secret_file

        named = os.environ.get("SYNAPSE_AGE_IDENTITY_FILE")
        if named:
            try:
                return parse_age_identities(remember(read_secret_file(named)), origin=named)
            except ValueError as reason:
                raise ConfigError(f"cannot read the age identity file {named}: {reason}") from None
        if not self.has_spec:
            return ()
        return self.stack().age_identities()


def stack_options(command: Command) -> Command:
    """Add --spec and --state-dir; the command takes `place: Place`."""
    return _with_place(command, (_spec_option, _state_dir_option))


def repository_options(command: Command) -> Command:
    """Add --spec, --state-dir, --repository, --endpoint, --region and --ca-file; the command takes `place: Place`."""
    return _with_place(command, (_spec_option, _state_dir_option, *_repository_options))


def _with_place(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    from functools import wraps

    @wraps(command)
    def with_place(*args: Any, spec_path: Path | None, state_dir: Path, **rest: Any) -> Any:
        names = ("repository_url", "endpoint", "region", "ca_file")
        chosen = {name: rest.pop(name) for name in names if name in rest}
        try:
            return command(*args, place=Place(spec_path, state_dir, **chosen), **rest)
        except SynapseOpsError as error:
            add_stack_hint(error)
            raise

    wrapped: Any = with_place
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
