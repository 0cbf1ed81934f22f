"""Where WAL lies in a repository: builds and parses every key below `<identity>/wal/`.

    <identity>/wal/<timeline>/claim.json                          the server that writes this timeline; written first
                              <timeline>.history                  PostgreSQL's own file, from timeline 2 on
                              <segment>.zst[.age]                 a whole segment
                              <segment>.json                      its facts, until an index holds them
                              <segment>.chunks/<from>-<to>.zst[.age]   bytes of a segment that is not stored whole yet
                              index/<segment>.json                facts of 256 segments, named after the first

`timeline` has 8 hex digits; `from` and `to` are offsets in the segment, 8 hex digits each. No key is the folder of
another. `parse_wal_key` inverts all of them (property test).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from synapse_ops.domain.backup.layout import WAL, Identity
from synapse_ops.domain.database.wal import Segment

GROUP = 256  # segments of an index: 4 GiB of WAL at the usual size, and as many rows as one listing's page takes
AGE = ".age"

WalKeyKind = Literal["claim", "history", "segment", "facts", "chunk", "index"]
_KEY = re.compile(
    r"(?P<identity>\d{1,20}-[0-9a-f]{8})/wal/(?P<timeline>[0-9A-F]{8})/"
    r"(?:(?P<claim>claim\.json)|(?P<history>(?P=timeline)\.history)"
    r"|index/(?P<index>(?P=timeline)[0-9A-F]{16})\.json"
    r"|(?P<segment>(?P=timeline)[0-9A-F]{16})"
    r"(?:(?P<facts>\.json)|\.zst(?P<age>\.age)?"
    r"|\.chunks/(?P<start>[0-9A-F]{8})-(?P<stop>[0-9A-F]{8})\.zst(?P<chunk_age>\.age)?))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class WalKey:
    """A parsed key. segment: the file name, empty for a claim or history; start, stop: offsets of a chunk."""

    kind: WalKeyKind
    identity: Identity
    timeline: int
    segment: str = ""
    start: int = 0
    stop: int = 0
    is_encrypted: bool = False


def wal_prefix(identity: Identity) -> str:
    return f"{identity}/{WAL}/"


def timeline_prefix(identity: Identity, timeline: int) -> str:
    return f"{identity}/{WAL}/{timeline:08X}/"


def claim_key(identity: Identity, timeline: int) -> str:
    return timeline_prefix(identity, timeline) + "claim.json"


def history_key(identity: Identity, timeline: int) -> str:
    return f"{timeline_prefix(identity, timeline)}{timeline:08X}.history"


def index_prefix(identity: Identity, timeline: int) -> str:
    return timeline_prefix(identity, timeline) + "index/"


def index_key(identity: Identity, segment: Segment) -> str:
    """Return the key of the index that a segment's facts go into."""
    return f"{index_prefix(identity, segment.timeline)}{first_of_group(segment).name}.json"


def segment_key(identity: Identity, segment: Segment, *, encrypted: bool) -> str:
    return f"{timeline_prefix(identity, segment.timeline)}{segment.name}.zst{AGE if encrypted else ''}"


def facts_key(identity: Identity, segment: Segment) -> str:
    return f"{timeline_prefix(identity, segment.timeline)}{segment.name}.json"


def chunks_prefix(identity: Identity, segment: Segment) -> str:
    return f"{timeline_prefix(identity, segment.timeline)}{segment.name}.chunks/"


def chunk_key(identity: Identity, segment: Segment, start: int, stop: int, *, encrypted: bool) -> str:
    """Return the key of the bytes [start, stop) of a segment, as offsets in it."""
    return f"{chunks_prefix(identity, segment)}{start:08X}-{stop:08X}.zst{AGE if encrypted else ''}"


def first_of_group(segment: Segment) -> Segment:
    """Return the first of the 256 segments that share an index with this one."""
    return Segment(segment.timeline, segment.number // GROUP * GROUP, segment.size_bytes)


def parse_wal_key(key: str) -> WalKey | None:
    """Return what a key is, or None for one that is not exactly of our forms: foreign, never read and never deleted."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    kind: WalKeyKind = "segment"
    start = stop = 0
    if match["start"] is not None:
        kind, start, stop = "chunk", int(match["start"], 16), int(match["stop"], 16)
        if start >= stop:
            return None
    elif match["claim"]:
        kind = "claim"
    elif match["history"]:
        kind = "history"
    elif match["index"]:
        kind = "index"
    elif match["facts"]:
        kind = "facts"
    return WalKey(
        kind,
        Identity.parse(match["identity"]),
        int(match["timeline"], 16),
        match["index"] or match["segment"] or "",
        start,
        stop,
        is_encrypted=bool(match["age"] or match["chunk_age"]),
    )
