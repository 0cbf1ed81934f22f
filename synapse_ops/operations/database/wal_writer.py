"""Writes WAL into a repository: claims, chunks, segments with their facts, indexes, histories.

Every object is written once, under a condition. A key that is taken already is no error where it holds the same WAL: it
may be our own, from before a restart. Other WAL under it was written by another server, which is refused, and nothing
is overwritten. An object counts once the store gave back, or has itself checked, what was sent.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_facts import SegmentFacts, SegmentIndex, TimelineClaim
from synapse_ops.domain.database.wal_keys import (
    chunk_key,
    claim_key,
    facts_key,
    history_key,
    index_key,
    segment_key,
)
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.errors import ChecksumMismatch, ConfigError, ObjectMissing, Refused, WrongIdentity
from synapse_ops.operations.database.wal_objects import ReadAt, WalBytes, decode, encode, pieces
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.conditional_write import write_over
from synapse_ops.systems.s3.features import sha256_base64
from synapse_ops.systems.s3.store import ConditionFailed, WrittenObject

IN_MEMORY_BYTES = 64 * 1024 * 1024  # of a segment; a larger one is compressed on the disk and stored in parts
_DIGEST = "synapse-plain"  # metadata of an encrypted object
_KEY_BYTES = 32
_MAKE_KEY = "Make one once, and keep it: head -c 32 /dev/urandom > wal-digest-key"


class OtherWal(WrongIdentity):
    """A key holds whole WAL, and not that of this server."""


@dataclass(frozen=True, slots=True)
class DigestKey:
    """Makes digests of plain bytes that only its holder can compare: a bare sha256 would confirm a guess."""

    secret: bytes

    def __repr__(self) -> str:
        return f"DigestKey({self.name})"

    @property
    def name(self) -> str:
        return hashlib.sha256(self.secret).hexdigest()[:8]

    def of(self, sha256: str) -> str:
        return f"{self.name}-{hmac.new(self.secret, sha256.encode(), 'sha256').hexdigest()}"


def read_digest_key(path: Path, *, given: Path | None = None) -> DigestKey:
    """Return this host's key, made the first time. Without it what is encrypted cannot be compared, and is believed.

    given: the file in which somebody else keeps it, never made here. Raises ConfigError where it is missing or short.
    """
    if given is not None:
        try:
            secret = given.read_bytes()
        except OSError as error:
            raise ConfigError(f"could not read the digest key {given}: {error.strerror}", hint=_MAKE_KEY) from error
        if len(secret) < _KEY_BYTES:
            raise ConfigError(f"the digest key {given} has {len(secret)} bytes, at least {_KEY_BYTES}", hint=_MAKE_KEY)
        return DigestKey(secret)
    try:
        return DigestKey(path.read_bytes())
    except FileNotFoundError:
        secret = os.urandom(_KEY_BYTES)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        return DigestKey(secret)


class WalWriter:
    """Writes for one server. recipients: age public keys; empty: not encrypted.

    age_identities: to compare with, if any. scratch_dir: for a segment that is larger than memory should hold.
    believes: what is stored is taken for the same where it is encrypted and no key tells; else that is refused.
    """

    def __init__(
        self,
        repository: Repository,
        identity: Identity,
        *,
        digest_key: DigestKey,
        scratch_dir: Path,
        recipients: Sequence[str] = (),
        age_identities: Sequence[str] = (),
        believes: bool = True,
    ) -> None:
        self._believes = believes
        self.repository = repository
        self.identity = identity
        self._store = repository.store
        self._recipients = tuple(recipients)
        self._age_identities = tuple(age_identities)
        self._digest_key = digest_key
        self._scratch_dir = scratch_dir

    @property
    def is_encrypted(self) -> bool:
        return bool(self._recipients)

    def claim(self, claim: TimelineClaim) -> None:
        """Write who writes a timeline, or compare with who does. Raises WrongIdentity for another server."""
        key = claim_key(self.identity, claim.timeline)
        try:
            found = TimelineClaim.from_json(self._store.read_bytes(key), key=key)
        except ObjectMissing:
            self._write_once(key, claim.to_json())
            found = TimelineClaim.from_json(self._store.read_bytes(key), key=key)
        if faults := found.differs_from(claim):
            raise WrongIdentity(
                f"timeline {claim.timeline} is claimed by another server than {claim.node}: {'; '.join(faults)}",
                detail=f"by {found.node} at {found.claimed_at.isoformat(timespec='seconds')}, {key}",
                hint="A copy that is to go live needs a generation of its own.",
            )

    def store(self, what: WalBytes, read_at: ReadAt) -> WrittenObject:
        """Store some WAL: a chunk, or a whole segment. Safe to repeat, and after a restart.

        Raises WrongIdentity when the key holds other WAL, ChecksumMismatch when the store changed what was sent.
        """
        key = self._key(what, encrypted=self.is_encrypted)
        if what.stop - what.start > IN_MEMORY_BYTES:
            return self._store_large(key, what, read_at)
        buffer = io.BytesIO()
        sha256 = encode(what, read_at, buffer, self._recipients)
        data = buffer.getvalue()
        features = self._store.features
        if not features.conditional_writes and self._store.head(key) is not None:
            return self._known(key, what, sha256)
        try:
            written = self._store.put_bytes(
                key,
                data,
                if_none_match=features.conditional_writes,
                checksum=sha256_base64(data) if features.keeps_checksums else None,
                metadata={_DIGEST: self._digest_key.of(sha256)} if self.is_encrypted else None,
            )
        except ConditionFailed:
            return self._known(key, what, sha256)
        if not features.keeps_checksums and self._store.read_bytes(key, etag=written.etag) != data:
            raise ChecksumMismatch(f"object {self._store.full_url(key)} differs from what was sent")
        return written

    def _store_large(self, key: str, what: WalBytes, read_at: ReadAt) -> WrittenObject:
        """Store a segment in parts, unless it is there: not every store completes an upload on a condition."""
        with tempfile.TemporaryFile(dir=self._scratch_dir) as file:
            sha256 = encode(what, read_at, file, self._recipients)
            if self._store.head(key) is not None:
                return self._known(key, what, sha256)
            file.seek(0)
            with self._store.open_writer(key) as writer:
                while data := file.read(1 << 20):
                    writer.write(data)
                written = writer.complete()
        if not written.checksum or self._store.kept_checksum(key) != written.checksum:
            with self._store.open_reader(key) as reader:
                while reader.read(1 << 20):
                    pass
                if reader.sha256 != written.sha256:
                    raise ChecksumMismatch(f"object {self._store.full_url(key)} differs from what was sent")
        return written

    def _key(self, what: WalBytes, *, encrypted: bool) -> str:
        if (what.start, what.stop) == (0, what.segment.size_bytes):
            return segment_key(self.identity, what.segment, encrypted=encrypted)
        return chunk_key(self.identity, what.segment, what.start, what.stop, encrypted=encrypted)

    def _known(self, key: str, what: WalBytes, sha256: str) -> WrittenObject:
        """Return what is stored under a key that we meant to write, if it is the same WAL."""
        if self._plain_sha256_is(key, what, sha256) is False:
            raise _other_wal(self._store.full_url(key), what)
        return self._receipt(key)

    def read_whole(self, segment: Segment) -> WrittenObject:
        """Return the receipt of a segment that an earlier run has stored. Raises ObjectMissing."""
        key = segment_key(self.identity, segment, encrypted=False)
        if self._store.head(key) is None:
            key = segment_key(self.identity, segment, encrypted=True)
        return self._receipt(key)

    def _receipt(self, key: str) -> WrittenObject:
        with self._store.open_reader(key) as reader:
            while reader.read(1 << 20):
                pass
            return WrittenObject(key, reader.read_bytes_total, reader.info.etag, reader.sha256)

    def compare(self, what: WalBytes, read_at: ReadAt) -> bool:
        """Compare what is stored with the server's bytes; False when that is not possible for want of a key.

        Raises WrongIdentity for other WAL, ChecksumMismatch for a damaged object, ObjectMissing.
        """
        digest = hashlib.sha256()
        for piece in pieces(read_at, what.start, what.stop):
            digest.update(piece)
        key = self._key(what, encrypted=False)
        if self._store.head(key) is None:
            key = self._key(what, encrypted=True)
        same = self._plain_sha256_is(key, what, digest.hexdigest())
        if same is False:
            raise _other_wal(self._store.full_url(key), what)
        return same is True

    def _plain_sha256_is(self, key: str, what: WalBytes, sha256: str) -> bool | None:
        """Return whether an object holds these plain bytes; None: it is encrypted, and no key tells."""
        encrypted = key.endswith(".age")
        if encrypted and not self._age_identities:
            kept = self._store.read_metadata(key).get(_DIGEST, "")
            ours = self._digest_key.of(sha256)
            if kept.startswith(f"{self._digest_key.name}-"):
                return kept == ours
            if self._believes:
                return None
            raise Refused(
                f"{self._store.full_url(key)} is encrypted, and cannot be compared with what this server has",
                hint="Give both hosts one --digest-key: that of the one which stored it, wal/digest.key of its state.",
            )
        with self._store.open_reader(key) as reader, Path(os.devnull).open("wb") as sink:
            url = self._store.full_url(key)
            found = decode(
                reader,
                what,
                sink,
                what=url,
                encrypted=encrypted,
                age_identities=self._age_identities,
            )
        return found == sha256

    def store_facts(self, segment: Segment, facts: SegmentFacts) -> None:
        """Write the facts of one segment beside it."""
        self._write_once(facts_key(self.identity, segment), SegmentIndex(segments=(facts,)).to_json())

    def store_index(self, first: Segment, index: SegmentIndex) -> None:
        """Write the index of a group and remove the single facts that it replaces. first: any segment of the group."""
        self._write_once(index_key(self.identity, first), index.to_json())
        segments = (Segment.parse(one.segment, first.size_bytes) for one in index.segments)
        self._remove(facts_key(self.identity, segment) for segment in segments)

    def remove_chunks(self, segment: Segment, chunks: Iterable[Chunk]) -> None:
        """Remove chunks whose bytes are stored in another object, which was checked."""
        self._remove(
            chunk_key(self.identity, segment, one.start, one.stop, encrypted=encrypted)
            for one in chunks
            for encrypted in (False, True)
        )

    def _remove(self, keys: Iterable[str]) -> None:
        self._store.delete(list(keys))  # what stays is listed beside what replaces it, and harmless

    def publish_history(self, history: TimelineHistory, data: bytes) -> None:
        """Store a history file: from here on readers follow that timeline."""
        self._write_once(history_key(self.identity, history.timeline), data)

    def _write_once(self, key: str, data: bytes) -> None:
        """Write a document. One that is there already stays: it was written before a restart, or by another."""
        if not self._store.features.conditional_writes:
            if self._store.head(key) is None:
                self._store.put_bytes(key, data)
            return
        try:
            write_over(self._store, key, data)
        except ConditionFailed:
            return


def _other_wal(url: str, what: WalBytes) -> OtherWal:
    return OtherWal(
        f"{url} holds other WAL than this server has at {what.segment.start + what.start}",
        detail="the server is a clone of the one that wrote it, or was restored from an older copy",
        hint="Nothing was overwritten. Give a copy that is to go live a generation of its own; stop its receiver.",
    )
