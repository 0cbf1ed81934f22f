"""Where a recovery restores to, and what puts the copy into service: the embedded stack, or servers that are named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.domain.recovery.impact import Node
from synapse_ops.domain.recovery.recovery_record import RecoveryRecord

if TYPE_CHECKING:
    from synapse_ops.spec.blocks.stores import Qdrant

Conninfo = Callable[[str], str]  # database -> conninfo of a superuser; it may hold a password


class RecoveryPlace(Protocol):
    """The servers that a recovery brings back. is_embedded: those of the embedded stack."""

    @property
    def is_embedded(self) -> bool: ...

    def begin(self) -> None:
        """Start what every recovery needs, where it is ours: the object store."""

    def nodes(self) -> tuple[Node, ...]:
        """Return PostgreSQL's nodes as they are seen now."""

    def folder(self, recovery_id: str) -> Path:
        """Return where directories are restored to: on the file system on which they are put into service."""

    def vectors(self, folder: Path) -> AbstractContextManager[Qdrant]:
        """Run, or name, the server that takes the collections; yield how it is reached."""

    def name_of(self, collection: str, recovery_id: str) -> str:
        """Return the name under which a collection is restored."""

    def cluster(self, directory: Path) -> AbstractContextManager[Conninfo]:
        """Run a restored cluster so that nobody but us reaches it, as it will be run later; yield its conninfos."""

    def prepare_redis(self, directory: Path) -> None:
        """Have Redis's next start load the restored snapshot."""

    def refuse_unless_replaceable(self, record: RecoveryRecord, folder: Path, gone: str) -> None:
        """Raise Refused, with nothing changed, where the copy must not take the place of what is there.

        gone: what a person states of servers that nobody here has authority over.
        """

    def switch(self, record: RecoveryRecord, folder: Path, progress: ReportProgress) -> dict[str, Any]:
        """Fence the old nodes, put the copy into service and start it; safe to repeat from wherever it was cut.

        Returns facts of JSON types. Raises Refused while an old node may still take writes.
        """

    def start(self, progress: ReportProgress) -> dict[str, str]:
        """Start what is in service and does not run, where it is ours to start; return the state of each server."""

    def validate(self, record: RecoveryRecord) -> dict[str, Any]:
        """Write, read and search as the application does; return `seconds` of each, and `faults`."""
