"""What is in a Redis server, key by key, as `domain/redis/fingerprint.py` compares it: a live one gently, a copy whole.

A live server is asked in small pipelines of commands that take no time each: no KEYS, no script, no DUMP of what is
large. DEBUG DIGEST would give this at once, but not on servers in use: it stops them for as long as it takes.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, TypeVar

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.redis.fingerprint import (
    CopyKeys,
    Digest,
    KeyFingerprint,
    KeyReading,
    KeyRow,
    digest_of,
    key_name,
    unordered,
)
from synapse_ops.errors import IntegrityError
from synapse_ops.systems.redis.server import RedisServer

MOST_VALUE_BYTES = 1024 * 1024  # by MEMORY USAGE; a larger value is compared by its type
_BATCH_KEYS = 200
_BATCH_BYTES = 8 * 1024 * 1024  # of values in one pipeline, so in our memory at once
_SCAN_COUNT = 1000

Keys = Mapping[int, Sequence[bytes]]  # by logical database
Item = TypeVar("Item")


def count_keys(info: Mapping[str, Any]) -> dict[int, int]:
    """Return the keys by logical database that INFO lists; an empty database is left out."""
    rows = {name[2:]: row for name, row in info.items() if re.fullmatch(r"db\d+", name) and isinstance(row, Mapping)}
    try:
        return {int(number): int(row["keys"]) for number, row in sorted(rows.items(), key=lambda item: int(item[0]))}
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"cannot read the keyspace section of Redis's INFO: {error!r}") from error


def choose_keys(server: RedisServer, *, most: int, sample: int) -> tuple[Literal["all", "sample"], Keys]:
    """Return all keys where there are at most `most`, else about `sample` drawn by the server, by databases' share."""
    counts = count_keys(server.info())
    total = sum(counts.values())
    if total <= most:
        return "all", all_keys(server)
    drawn: dict[int, Sequence[bytes]] = {}
    for number, count in counts.items():
        with server.reading(number) as client:
            drawn[number] = list(dict.fromkeys(_random_keys(client, max(1, round(sample * count / total)))))
    return "sample", drawn


def all_keys(server: RedisServer) -> Keys:
    """Return every key of every logical database."""
    found: dict[int, Sequence[bytes]] = {}
    for number in count_keys(server.info()):
        with server.reading(number) as client:
            found[number] = list(dict.fromkeys(_scan(client)))
    return found


def read_keys(server: RedisServer, chosen: Keys, *, progress: ReportProgress = ignore_progress) -> KeyReading:
    """Read some keys of a live server; those that are gone have no row. Values over MOST_VALUE_BYTES are not read."""
    info = server.info()
    done, total = 0, sum(len(keys) for keys in chosen.values())
    rows: dict[str, KeyRow] = {}
    for number, keys in chosen.items():
        with server.reading(number) as client:
            reader = _Reader(client, info, MOST_VALUE_BYTES)
            for batch in _batches(keys, _BATCH_KEYS):
                rows.update((key_name(number, key), row) for key, row in reader.rows(batch))
                done += len(batch)
                progress(Progress("reading keys", done, total, unit="keys"))
    return KeyReading(count_keys(server.info()), rows, read_functions(server))


def read_copy(server: RedisServer, expected: KeyFingerprint, *, progress: ReportProgress = ignore_progress) -> CopyKeys:
    """Go through every key of a copy that has no other user, and read those that it is held to."""
    info = server.info()
    counts = count_keys(info)
    done, total, unlisted = 0, sum(counts.values()), 0
    rows: dict[str, KeyRow] = {}
    known = expected.names
    for number in counts:
        with server.reading(number) as client:
            by_type, by_value = _Reader(client, info, 0), _Reader(client, info, None)
            for batch in _batches(dict.fromkeys(_scan(client)), _BATCH_KEYS):
                names = {key_name(number, key): key for key in batch}
                unlisted += len(names.keys() - known)
                held = {name: expected.still[name].digest is not None for name in names if name in expected.still}
                for reader, wants_value in ((by_value, True), (by_type, False)):
                    keys = [names[name] for name, by_it in held.items() if by_it is wants_value]
                    rows.update((key_name(number, key), row) for key, row in reader.rows(keys))
                done += len(batch)
                progress(Progress("comparing keys", done, total, unit="keys"))
    after = server.info()
    expired = int(after.get("rdb_last_load_keys_expired", 0)) + int(after.get("expired_keys", 0))
    return CopyKeys(count_keys(after), expired, rows, unlisted, round(time.time() * 1000), read_functions(server))


def read_functions(server: RedisServer) -> Digest | None:
    """Return a digest of the server's libraries of functions (7.0); None where it has no such thing for us."""
    from redis.exceptions import ResponseError

    with server.reading(0) as client, suppress(ResponseError):
        client.response_callbacks.clear()
        libraries = client.execute_command("FUNCTION", "LIST", "WITHCODE")
        codes = [_pairs(library) for library in libraries]
        return digest_of(unordered((row[b"library_name"], row[b"engine"], row[b"library_code"]) for row in codes))
    return None


def _scan(client: Any) -> Iterator[bytes]:
    cursor = b"0"
    while True:
        cursor, keys = client.execute_command("SCAN", cursor, "COUNT", _SCAN_COUNT)
        yield from keys
        if cursor in (b"0", 0):
            return


def _random_keys(client: Any, count: int) -> Iterator[bytes]:
    for step in _batches(range(count), _SCAN_COUNT):
        with client.pipeline(transaction=False) as pipe:
            for _ in step:
                pipe.execute_command("RANDOMKEY")
            yield from (key for key in pipe.execute() if key is not None)


class _Reader:
    """Reads keys of one database. most: bytes up to which a value is read; 0: none, None: every one."""

    def __init__(self, client: Any, info: Mapping[str, Any], most: int | None) -> None:
        client.response_callbacks.clear()  # replies as they come: a dict of fields would lose their order
        self._client = client
        self._most = most
        version = tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:2])
        self._tells_expiry = version >= (7, 0)
        self._fields_expire = version >= (7, 4)

    def rows(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, KeyRow]]:
        """Yield the keys that are there, in any order."""
        expiry = "PEXPIRETIME" if self._tells_expiry else "PTTL"
        commands = [("TYPE",), (expiry,), ("MEMORY", "USAGE")]
        asked = list(self._ask([(*command, key) for key in keys for command in commands]))
        now_ms = round(time.time() * 1000)
        batch: list[tuple[bytes, str, int | None]] = []
        batch_bytes = 0
        for key, (kind, expires, size) in zip(keys, _batches(asked, len(commands)), strict=True):
            if kind == b"none" or size is None:
                continue
            at_ms = None if int(expires) < 0 else int(expires) + (0 if self._tells_expiry else now_ms)
            if kind.decode() not in _VALUES or (self._most is not None and size > self._most):
                yield key, KeyRow(kind.decode(), None, at_ms)
                continue
            batch.append((key, kind.decode(), at_ms))
            batch_bytes += int(size)
            if batch_bytes > _BATCH_BYTES:
                yield from self._with_values(batch)
                batch, batch_bytes = [], 0
        yield from self._with_values(batch)

    def _with_values(self, batch: Sequence[tuple[bytes, str, int | None]]) -> Iterator[tuple[bytes, KeyRow]]:
        replies = self._ask([_VALUES[kind][0](key) for key, kind, _ in batch])
        for (key, kind, at_ms), reply in zip(batch, replies, strict=True):
            is_empty = reply is None or (reply == [] and kind != "stream")
            if isinstance(reply, Exception) or is_empty:  # gone, or of another type by now
                continue
            parts: Iterable[bytes] | None = _VALUES[kind][1](reply)
            if kind == "stream":
                parts = [*_VALUES[kind][1](reply), *self._groups(key)]
            elif kind == "hash" and self._has_expiring_fields(key, reply[::2]):
                parts = None
            yield key, KeyRow(kind, None if parts is None else digest_of(parts), at_ms)

    def _groups(self, key: bytes) -> list[bytes]:
        [reply] = self._ask([("XINFO", "GROUPS", key)])
        groups = [] if isinstance(reply, Exception) else [_pairs(group) for group in reply]
        return unordered((row[b"name"], str(row[b"pending"]).encode(), row[b"last-delivered-id"]) for row in groups)

    def _has_expiring_fields(self, key: bytes, fields: Sequence[bytes]) -> bool:
        if not self._fields_expire:
            return False
        [reply] = self._ask([("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)])
        return not isinstance(reply, Exception) and reply is not None and any(int(at) >= 0 for at in reply)

    def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the replies to a pipeline. That a key is gone, or of another type by now, is an error in its place."""
        if not commands:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies = list(pipe.execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, Exception) and not str(reply).startswith(("WRONGTYPE", "no such key")):
                raise reply
        return replies


def _batches(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """Return a flat reply of names and values as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _scored(reply: Sequence[bytes]) -> list[bytes]:
    """Return members and scores; versions write one number differently, so that it is packed."""
    return unordered((member, struct.pack(">d", float(score))) for member, score in _batches(reply, 2))


def _entries(reply: Sequence[Any]) -> list[bytes]:
    return [part for entry, fields in reply for part in (entry, struct.pack(">Q", len(fields or ())), *(fields or ()))]


# type -> the command that reads a value, and its parts in an order that is the same on every server
_VALUES: dict[str, tuple[Callable[[bytes], tuple[Any, ...]], Callable[[Any], list[bytes]]]] = {
    "string": (lambda key: ("GET", key), lambda reply: [reply]),
    "list": (lambda key: ("LRANGE", key, 0, -1), list),
    "set": (lambda key: ("SMEMBERS", key), lambda reply: unordered((member,) for member in reply)),
    "hash": (lambda key: ("HGETALL", key), lambda reply: unordered(_batches(reply, 2))),
    "zset": (lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"), _scored),
    "stream": (lambda key: ("XRANGE", key, "-", "+"), _entries),
}
