"""A recovery of servers that the spec names: into a new data directory and new collections. A person starts the server.

Nobody here has authority over their hosts, so that a person states that the old nodes are gone; what can be seen of
them is looked at all the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.domain.recovery.impact import Node
from synapse_ops.domain.recovery.recovery_record import INTEGRITY, RESTORED, RecoveryRecord
from synapse_ops.errors import ConfigError, Refused, SynapseOpsError
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.recovery.journal import FOLDER
from synapse_ops.operations.recovery.place import Conninfo
from synapse_ops.operations.recovery.restored_stack import CLUSTER
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import give_to, server_identity
from synapse_ops.systems.postgres.connection import connect, conninfo_parts
from synapse_ops.systems.postgres.identity import commit_nothing, read_facts, read_identity
from synapse_ops.systems.postgres.programs import find_pg_tools, tools_for
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir

if TYPE_CHECKING:
    from synapse_ops.spec.blocks.stores import Qdrant

INERT = {"max_logical_replication_workers": 0}  # a copy that is looked at subscribes to nothing
_LEAST = re.compile(r"^(max_\w+) = (\d+)$", re.MULTILINE)
_CONFIGURATION = ("postgresql.conf", "pg_hba.conf")


@dataclass(frozen=True)
class NamedServers:
    """The servers of a spec."""

    stack: Stack
    is_embedded: bool = False

    def begin(self) -> None:
        """Nothing here is ours to start."""

    def nodes(self) -> tuple[Node, ...]:
        named = dict(self.stack.spec.database.nodes)
        parts = conninfo_parts(self.stack.admin_conninfo("postgres"))
        hosts, ports = parts.get("host", "").split(","), parts.get("port", "5432").split(",")
        places = named or {host: f"{host}:{ports[min(number, len(ports) - 1)]}" for number, host in enumerate(hosts)}
        return tuple(self._seen(name, str(address)) for name, address in places.items())

    def _seen(self, name: str, address: str) -> Node:
        from psycopg.conninfo import make_conninfo

        host, _, port = address.rpartition(":")
        parts = conninfo_parts(self.stack.admin_conninfo("postgres")) | {"host": host, "port": port}
        parts.pop("target_session_attrs", None)
        try:
            with connect(make_conninfo("", **parts)) as connection:
                is_primary = not read_facts(connection).is_standby
                return Node(name, runs=True, takes_writes=is_primary, has_data=True, is_here=False)
        except SynapseOpsError:
            return Node(name, runs=False, is_here=False)

    def folder(self, recovery_id: str) -> Path:
        folder = self.stack.state_dir / FOLDER / recovery_id
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        return folder

    @contextmanager
    def vectors(self, folder: Path) -> Iterator[Qdrant]:
        del folder
        yield self.stack.spec.qdrant

    def name_of(self, collection: str, recovery_id: str) -> str:
        return f"{collection}_{recovery_id}"

    @contextmanager
    def cluster(self, directory: Path) -> Iterator[Conninfo]:
        identity = server_identity()
        major = int((directory / "PG_VERSION").read_text().strip())
        tools = tools_for(identity, find_pg_tools(major), directory.parent / "programs")
        socket_dir = make_socket_dir(directory, identity)
        kept = {name: (directory / name).read_text(encoding="utf-8") for name in _CONFIGURATION}
        least = dict(_LEAST.findall(kept["postgresql.conf"]))  # without which it does not start
        log, superuser = directory.parent / "cluster.log", _superuser_of(directory)
        copy = PgServer(tools, identity, directory, socket_dir, 5432, log, settings={**least, **INERT})
        copy.start()
        try:
            yield lambda database: copy.conninfo(database, superuser)
        finally:
            copy.stop("fast")
            for name, text in kept.items():  # with which a person starts it
                (directory / name).write_text(text, encoding="utf-8")
                give_to(identity, directory / name)

    def prepare_redis(self, directory: Path) -> None:
        """A person starts it, as the report says."""

    def refuse_unless_replaceable(self, record: RecoveryRecord, folder: Path, gone: str) -> None:
        """Raises Refused while nobody states that the old nodes are gone, or another server answers in their place."""
        if not gone:
            raise Refused(
                "the old nodes cannot be ended from here, and both would come back and take writes",
                hint='Power them off, then say so: --old-nodes-gone "powered off at 10:41, by anna".',
            )
        self._require_restored(record, folder / CLUSTER)

    def switch(self, record: RecoveryRecord, folder: Path, progress: ReportProgress) -> dict[str, Any]:
        """The restored server runs: its collections take the places of theirs."""
        from synapse_ops.operations.vectors.alias import switch_alias
        from synapse_ops.systems.qdrant.server import qdrant_nodes

        del folder, progress
        switched = []
        with_servers = qdrant_nodes(self.stack.spec.qdrant)
        try:
            for what, part in record.steps[RESTORED]["parts"].items():
                for alias in part["aliases"] if what.startswith(f"{SNAPSHOTS.word}/") else ():
                    before = switch_alias(with_servers, alias, part["collection"])
                    switched.append({"alias": alias, "collection": part["collection"], "before": before})
        finally:
            for server in with_servers:
                server.close()
        return {"aliases": switched}

    def start(self, progress: ReportProgress) -> dict[str, str]:
        """A person starts them."""
        del progress
        return {}

    def _require_restored(self, record: RecoveryRecord, directory: Path) -> None:
        wanted, hint = (
            record.steps[INTEGRITY]["identity"],
            f"Start it where database.admin points: pg_ctl -D {directory} start",
        )
        try:
            with connect(self.stack.admin_conninfo("postgres")) as connection:
                found = read_identity(connection)
        except SynapseOpsError as error:
            raise Refused(f"the restored server does not answer: {error.message}", hint=hint) from error
        if str(found) != wanted:
            raise Refused(f"the server of database.admin is {found}, the restored one is {wanted}", hint=hint)

    def validate(self, record: RecoveryRecord) -> dict[str, Any]:
        """A commit, a query, and a search in each collection that was restored."""
        from synapse_ops.systems.qdrant.server import open_qdrant

        faults = list[str]()
        began_s = time.monotonic()
        with connect(self.stack.admin_conninfo(self.stack.spec.database.name)) as connection:
            commit_nothing(connection)
            write_s = time.monotonic() - began_s
            if read_facts(connection).is_standby:
                faults.append("the server of database.admin is a standby")
            read_s = time.monotonic() - began_s - write_s
        with open_qdrant(self.stack.spec.qdrant) as server:
            for what, part in record.steps[RESTORED]["parts"].items():
                if what.startswith(f"{SNAPSHOTS.word}/") and server.count(part["collection"]) < part["points"]:
                    faults.append(
                        f"{part['collection']} holds fewer than the {part['points']} points that were restored"
                    )
        search_s = time.monotonic() - began_s - write_s - read_s
        times = {"write_s": round(write_s, 3), "read_s": round(read_s, 3), "search_s": round(search_s, 3)}
        return times | {"lost_writes": None, "faults": faults}


def _superuser_of(directory: Path) -> str:
    """Return the bootstrap role that the restore mapped to the directory's owner. Raises ConfigError for none."""
    for line in (directory / "pg_ident.conf").read_text(encoding="utf-8").splitlines():
        if line.startswith("restored "):
            return line.split(" ", 2)[2].strip('"').replace('""', '"')
    raise ConfigError(f"{directory}/pg_ident.conf names no superuser: it was not made by a restore")
