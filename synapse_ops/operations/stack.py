"""The stack that a spec describes, opened: what every operation on live servers is given."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, replace
from pathlib import Path

from synapse_ops.errors import ConfigError
from synapse_ops.operations.repository import Repository, open_repository
from synapse_ops.spec import LoadedSpec, SecretRef, Spec, load_spec
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess


@dataclass(frozen=True)
class Stack:
    """A valid spec and this host's state directory. Secrets are resolved when asked for, never kept."""

    loaded: LoadedSpec
    state_dir: Path

    @property
    def spec(self) -> Spec:
        return self.loaded.spec

    def database_repository(self) -> Repository:
        """Return the repository of `backup.database.destination`. Raises ConfigError for missing credentials."""
        return open_repository(self.spec.backup.database.destination, self.store_access(), state_dir=self.state_dir)

    def vector_repository(self) -> Repository:
        """Return the repository of `backup.vectors.destination`. Raises ConfigError for missing credentials."""
        return open_repository(self.spec.backup.vectors.destination, self.store_access(), state_dir=self.state_dir)

    def redis_repository(self) -> Repository:
        """Return the repository of `backup.redis.destination`. Raises ConfigError where that is off, and as above."""
        redis = self.spec.backup.redis
        if redis is None:
            raise ConfigError(
                "backup.redis is not set: Redis is treated as a cache and not backed up",
                hint="Write `redis: {}` into the block `backup` of the spec to back it up.",
            )
        return open_repository(redis.destination, self.store_access(), state_dir=self.state_dir)

    def release_store(self) -> ObjectStore:
        """Return the store of `manifests.destination`. Raises ConfigError for missing credentials."""
        return ObjectStore(self.spec.manifests.destination, self.store_access())

    def admin_conninfo(self, database: str) -> str:
        """Return a libpq conninfo of the superuser for one database. It holds the password: never log it."""
        return self._conninfo(self.spec.database.admin, database)

    def replication_conninfo(self, database: str) -> str:
        """Return that of `database.replication`, whose role may stream WAL and little else, or of the superuser."""
        return self._conninfo(self.spec.database.replication or self.spec.database.admin, database)

    def _conninfo(self, reference: SecretRef, database: str) -> str:
        from psycopg.conninfo import make_conninfo

        from synapse_ops.systems.postgres.connection import conninfo_parts

        return make_conninfo("", **{**conninfo_parts(reference.resolve()), "dbname": database})

    def age_identities(self) -> tuple[str, ...]:
        """Return the age secret keys that `encryption.identity` refers to; empty when it is not set."""
        identity = self.spec.encryption.identity
        return () if identity is None else parse_age_identities(identity.resolve(), origin="encryption.identity")

    def store_access(self) -> StoreAccess:
        """Return how the object store is reached. Raises ConfigError for missing credentials."""
        store = self.spec.object_store
        access = _read_credentials(store.credentials)
        return replace(
            access,
            endpoint=store.endpoint or access.endpoint,
            region=store.region,
            ca_file=Path(store.ca_file) if store.ca_file else access.ca_file,
        )


def open_stack(spec_path: Path, state_dir: Path) -> Stack:
    """Load the spec and return its stack. Raises ConfigError listing every fault of the spec."""
    return Stack(load_spec(spec_path), state_dir)


def parse_age_identities(text: str, *, origin: str) -> tuple[str, ...]:
    """Return the AGE-SECRET-KEY-... lines of an identity file; comments are allowed. Raises ConfigError when none."""
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    if not keys or not all(key.startswith("AGE-SECRET-KEY-") for key in keys):
        raise ConfigError(
            f"{origin} holds {len(keys)} lines that are not all age secret keys",
            hint="Each line starts with AGE-SECRET-KEY-1; `age-keygen` writes such a file.",
        )
    return keys


def _read_credentials(reference: SecretRef) -> StoreAccess:
    """Return the access that `object_store.credentials` refers to.

    env:PREFIX means PREFIX_ACCESS_KEY_ID and PREFIX_SECRET_ACCESS_KEY; file:PATH is an AWS shared-credentials file.
    """
    if reference.scheme == "env":
        return StoreAccess.from_environment(prefix=reference.target)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(reference.resolve())
        profile = parser["default"]
        return StoreAccess(
            access_key=profile["aws_access_key_id"],
            secret_key=profile["aws_secret_access_key"],
            session_token=profile.get("aws_session_token"),
        )
    except (configparser.Error, KeyError) as error:
        raise ConfigError(
            f"object_store.credentials {reference} is not an AWS shared-credentials file with a [default] profile",
            detail=f"missing or misplaced: {type(error).__name__}",
            hint="It has three lines: [default], aws_access_key_id = ..., aws_secret_access_key = ...",
        ) from None  # the parser's own message would quote the line, which may be the secret
