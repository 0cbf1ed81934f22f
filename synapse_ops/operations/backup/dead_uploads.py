"""Multipart uploads of a writer that was killed on this host, aborted by the next writer of the same subject.

An unfinished upload is not listed, but it is billed. Others may abort it after the grace only
(domain/backup/left_overs.py), since they cannot know whether its writer lives; the writer's own host can, by the
heartbeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synapse_ops.domain.backup.layout import HEARTBEAT, BackupPlace, parse_key
from synapse_ops.domain.bounded_json import read_json
from synapse_ops.systems.host.process_presence import has_ended_here

if TYPE_CHECKING:
    from synapse_ops.systems.s3.store import ObjectStore


def abort_uploads_of_the_dead(store: ObjectStore, beside: BackupPlace) -> int:
    """Abort what killed processes of this host and boot left below the subject of `beside`; return how many."""
    folder = beside.prefix.removesuffix("/").rpartition("/")[0] + "/"
    aborted = 0
    for upload in store.list_uploads(folder):
        key = parse_key(upload.key)
        if key is None:
            continue
        beat = store.read_with_etag(key.place.key(HEARTBEAT))
        if beat is not None and _writer_has_ended(beat[0]):
            store.abort_upload(upload)
            aborted += 1
    return aborted


def _writer_has_ended(heartbeat: bytes) -> bool:
    try:
        body = read_json(heartbeat)
    except ValueError:
        return False
    return isinstance(body, dict) and has_ended_here(body)
