"""Redis: the only place that makes a client of it.

Idle keys are found inside the server: a Lua script takes one page of SCAN and asks OBJECT IDLETIME of each key, so that
a million keys cost some seven hundred round trips, and a page holds up other clients for one or two milliseconds.
OBJECT IDLETIME does not count as use. A key goes only in the script that has just found it idle again.
Source: redis.io, SCAN, OBJECT IDLETIME, UNLINK; the server runs one script at a time, between two commands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_ops.systems.redis.errors import redis_answers, redis_errors

if TYPE_CHECKING:
    from redis import Redis

UNLINK_KEYS = 200  # of one removing step; 500 took 1.6 ms on a busy host
_PAGE_KEYS = (250, 1500)  # of one SCAN step, fewest and most: measured 0.3 and 1.4 ms in the server
_PAGE_S = 0.003  # a page that took longer is followed by one of half its size: a slow host stays within 5 ms

# the idle keys come as one string, a line each: a million small replies cost more than looking for them
_PAGE_SCRIPT = """
local call, least, idle, count = redis.call, tonumber(ARGV[4]), {}, 0
local page = call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
for _, key in ipairs(page[2]) do
  local seconds = call('OBJECT', 'IDLETIME', key)
  if seconds and seconds >= least then
    count = count + 1
    idle[count] = key
  end
end
local sample = 0
if count > 0 then sample = call('MEMORY', 'USAGE', idle[1]) or 0 end
if ARGV[5] == 'lines' then idle = table.concat(idle, '\\n') end
return {page[1], #page[2], count, sample, idle}
"""

# one character a key: d deleted, g gone, u used since
_UNLINK_SCRIPT = """
local least, results = tonumber(ARGV[1]), {}
for index, key in ipairs(KEYS) do
  local seconds = redis.call('OBJECT', 'IDLETIME', key)
  if not seconds then results[index] = 'g'
  elseif seconds < least then results[index] = 'u'
  else redis.call('UNLINK', key) results[index] = 'd' end
end
return table.concat(results)
"""


@dataclass(frozen=True, slots=True)
class IdlePage:
    """One page: how many keys matched, how many of them are idle, and the bytes of memory of the first idle one.

    lines: the idle keys, one a line; None where a key has a line break in it, then they are in `odd`.
    """

    matched: int
    idle: int
    sample_bytes: int
    lines: bytes | None
    odd: tuple[bytes, ...] = ()

    def idle_keys(self) -> tuple[bytes, ...]:
        if self.lines is None:
            return self.odd
        return tuple(self.lines.split(b"\n")) if self.idle else ()


class RedisServer:
    """One Redis server and logical database. Connects when first asked; `close` ends that."""

    def __init__(self, host: str, port: int, db: int, *, password: str | None, timeout_s: float) -> None:
        self._at: Any = {"host": host, "port": port} if not host.startswith("/") else {"unix_socket_path": host}
        self.location = location_of(host, port)
        self.address = f"{host}:{port}/{db}"
        self._db = db
        self._password = password
        self._timeout_s = timeout_s
        self._client: Redis | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def info(self) -> Mapping[str, Any]:
        """Return INFO, all sections in one mapping.

        Raises Unreachable, ConfigError for a password not taken and for what does not speak Redis's protocol.
        """
        with self._answers():
            found: Mapping[str, Any] = self._connected().info("everything")
            if "redis_version" not in found:
                raise ValueError("INFO has no redis_version")
        return found

    def settings(self) -> Mapping[str, str]:
        """Return CONFIG GET *; empty where the server does not let us, as managed ones do."""
        from redis.exceptions import NoPermissionError, ResponseError

        with self._answers():
            try:
                found: Mapping[Any, Any] = self._connected().config_get("*")
            except (NoPermissionError, ResponseError):
                return {}
        return {_text(name): _text(value) for name, value in found.items()}

    @contextmanager
    def reading(self, db: int) -> Iterator[Any]:
        """Yield a client of its own logical database, replies as bytes; its errors become ours.

        What it reads does not count as use where the server supports that (7.2): idle times stay.
        """
        with self._errors(), closing(self._new_client(db=db, protocol=2, redis_connect_func=_touch_nothing)) as client:
            yield client

    @contextmanager
    def as_replica(self) -> Iterator[Any]:
        """Yield one connection of the client that has introduced itself, for a stream that the client does not know."""
        with self._errors(), closing(self._new_client(protocol=2)) as client:
            connection: Any = client.connection_pool.get_connection()
            try:
                yield connection
            finally:
                connection.disconnect()

    def dataset_digest(self) -> str:
        """Return Redis's own digest over all data (DEBUG DIGEST): of a throwaway only, it stops a server meanwhile."""
        with self._answers():
            client: Any = self._connected()
            found: bytes | str = client.execute_command("DEBUG", "DIGEST")
        return _text(found)

    def idle_pages(self, pattern: str, least_idle_s: int) -> Iterator[IdlePage]:
        """Yield every page of keys that match a glob pattern; a key may be met twice, as SCAN says."""
        fewest, most = _PAGE_KEYS
        cursor, count = b"0", fewest
        while True:
            begun = time.monotonic()
            cursor, page = self._idle_page(cursor, pattern, count, least_idle_s)
            taken_s = time.monotonic() - begun
            yield page
            if cursor in (b"0", 0):
                return
            count = max(fewest, count // 2) if taken_s > _PAGE_S else min(most, count * 2)

    def _idle_page(self, cursor: bytes, pattern: str, count: int, least_idle_s: int) -> tuple[bytes, IdlePage]:
        arguments = [cursor, pattern.encode("utf-8", "surrogateescape"), count, least_idle_s]
        with self._answers():
            following, matched, idle, sample, lines = self._run(_PAGE_SCRIPT, [], [*arguments, "lines"])
            if lines.count(b"\n") == max(0, idle - 1):
                return following, IdlePage(int(matched), int(idle), int(sample), lines)
            # a key has a line break in it: the same page again, as a list
            following, matched, idle, sample, odd = self._run(_PAGE_SCRIPT, [], [*arguments, "list"])
        return following, IdlePage(int(matched), int(idle), int(sample), None, tuple(odd))

    def unlink_idle(self, keys: Sequence[bytes], least_idle_s: int) -> str:
        """Remove those of some keys that are still idle, in one step; return a letter each: d, g (gone), u (used)."""
        with self._answers():
            found: bytes = self._run(_UNLINK_SCRIPT, keys, [least_idle_s])
        return found.decode()

    def _run(self, script: str, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        from hashlib import sha1

        from redis.exceptions import NoScriptError

        client: Any = self._connected()
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()  # what EVALSHA goes by
        try:
            return client.execute_command("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", script, len(keys), *keys, *arguments)

    def _connected(self) -> Redis:
        if self._client is None:
            self._client = self._new_client(db=self._db)
        return self._client

    def _new_client(self, **more: Any) -> Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Redis(
            **self._at,
            **more,
            password=self._password,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name="synapse-ops",
        )

    def _answers(self) -> AbstractContextManager[None]:
        return redis_answers(self.address, self._timeout_s)

    def _errors(self) -> AbstractContextManager[None]:
        return redis_errors(self.address, self._timeout_s)


def location_of(host: str, port: int) -> str:
    """Return the address of a server with all its databases: host:port, or the path of its socket."""
    return host if host.startswith("/") else f"{host}:{port}"


def redis_of(spec: Any) -> RedisServer:
    """Return the server of a spec's `redis` block. Raises ConfigError when its password cannot be resolved."""
    password = spec.password.resolve() if spec.password is not None else None
    return RedisServer(spec.host, spec.port, spec.db, password=password, timeout_s=spec.timeout.total_seconds())


def _touch_nothing(connection: Any) -> None:
    """Introduce a new connection, and have its reading not count as use; every connection, a pipeline has its own."""
    from redis.exceptions import ResponseError

    connection.on_connect()
    connection.send_command("CLIENT", "NO-TOUCH", "ON")
    with suppress(ResponseError):
        connection.read_response()


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
