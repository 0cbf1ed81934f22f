"""Where data lives: `database`, `redis`, `qdrant`, `object_store`, and `vectors`, which ties the first to the third."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synapse_ops.spec.block import (
    AbsolutePath,
    Address,
    Block,
    Count,
    DatabaseName,
    Duration,
    Host,
    HttpUrl,
    Name,
    Node,
    Port,
    Secret,
    SocketHost,
    Text,
)
from synapse_ops.spec.secrets import SecretRef

MOST_CONNECTIONS = 262_000  # PostgreSQL's 262,143, less those that keep it safe: standby, backup, probes


class Database(Block):
    """PostgreSQL: what clients connect to, and what backup and failover need besides."""

    host: SocketHost = Field(
        "localhost",
        description="Host that clients use. Where it is this machine or one of `nodes`, they try every node; a pooler "
        "or a managed server stays alone.",
    )
    port: Port = Field(5432, description="Port of PostgreSQL.")
    name: DatabaseName = Field("synapse", description="The application's database. Default: the first of `databases`.")
    user: DatabaseName = Field("synapse_user", description="The application's role.")
    max_connections: Count = Field(
        20, le=MOST_CONNECTIONS, description="Connections that the application may open in all."
    )
    pool_size: Count = Field(5, le=MOST_CONNECTIONS, description="Connections kept in the pool of one process.")
    admin: Secret = Field(
        SecretRef("env", "SYNAPSE_ADMIN_DSN"),
        description="Reference to the libpq URL of a superuser, for backup, monitoring and failover; at a managed "
        "server of a role in pg_monitor and pg_read_all_data that owns the database `postgres`.",
    )
    replication_user: DatabaseName = Field(
        "synapse_replication", description="Role with REPLICATION, for standbys and the WAL receiver."
    )
    replication: Secret | None = Field(
        None,
        description="Reference to the libpq URL of a role with the rights of `replication_user`, as which the WAL "
        "receiver connects; null: `admin`.",
    )
    databases: Annotated[tuple[DatabaseName, ...], Field(min_length=1)] = Field(
        default_factory=lambda valid: (valid.get("name", "synapse"),),
        json_schema_extra={"default": ["synapse"]},
        description="Databases to back up, each with its own proof and retention. Default: `name`.",
    )
    nodes: dict[Node, Address] = Field(
        {},
        description="Address of each node that `failover` names. One that is left out: the primary is where `admin` "
        "points, another is the host of its name, on the same port.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_is_listed(cls, given: Any) -> Any:
        """Take the first of `databases` for `name`: who lists only those has no database called synapse."""
        listed = given.get("databases") if isinstance(given, dict) else None
        if isinstance(listed, list | tuple) and listed and isinstance(listed[0], str):
            return {"name": listed[0], **given}
        return given


class Redis(Block):
    """Redis, the cache."""

    host: SocketHost = Field("localhost", description="Host of Redis.")
    port: Port = Field(6379, description="Port of Redis.")
    db: int = Field(0, ge=0, le=15, description="Number of the logical database.")
    max_connections: Count = Field(10, le=1_000_000, description="Connections that the application may open in all.")
    timeout: Duration = Field(timedelta(seconds=5), description="Longest time for one command.")
    password: Secret | None = Field(None, description="Reference to the password; null: no password.")


class Qdrant(Block):
    """Qdrant, the vector store."""

    host: Host = Field("localhost", description="Host of Qdrant.")
    port: Port = Field(6333, description="Port of its REST API.")
    tls: bool = Field(False, description="Whether `host` is reached over TLS; the URL of a node has its own scheme.")
    ca_file: AbsolutePath | None = Field(
        None, description="CA certificates that Qdrant is checked against; null: those of the system."
    )
    api_key: Secret | None = Field(
        None, description="Reference to a key that may manage the whole server; null: no key."
    )
    nodes: tuple[HttpUrl, ...] = Field(
        (), description="REST URL of each node of a cluster; a snapshot is one node's. Empty: `host` alone."
    )
    collection: Name = Field("documents", description="Collection that the application searches.")
    vector_size: int = Field(768, ge=1, le=65536, description="Dimensions of a vector.")
    distance: Literal["Cosine", "Dot", "Euclid", "Manhattan"] = Field("Cosine", description="How distance is measured.")


class ObjectStore(Block):
    """The S3 service that holds the backups."""

    endpoint: HttpUrl | None = Field(None, description="URL of the S3 API; null means AWS.")
    region: Text = Field("us-east-1", description="Region that requests are signed for.")
    credentials: Secret = Field(
        SecretRef("env", "AWS"),
        description="env:PREFIX reads PREFIX_ACCESS_KEY_ID, PREFIX_SECRET_ACCESS_KEY and PREFIX_SESSION_TOKEN; "
        "file:PATH is an AWS credentials file, profile default.",
    )
    ca_file: AbsolutePath | None = Field(None, description="CA certificates that the endpoint is checked against.")


class VectorSource(Block):
    """One table whose rows are embedded in one collection."""

    table: Text = Field(description="Table, with its schema unless it is public.")
    collection: Name = Field(description="Collection that holds its vectors.")
    key: DatabaseName = Field("id", description="Column whose value is the point's id.")


class Vectors(Block):
    """Which tables feed which collections, so that the two stores can be reconciled after a restore."""

    sources: tuple[VectorSource, ...] = Field((), description="Table to collection, one entry each.")
