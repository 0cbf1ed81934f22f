"""What every session of ours begins with, whatever the server, the database, the role and the environment say.

Settings in the startup packet outrank postgresql.conf, ALTER DATABASE, ALTER ROLE and ALTER ROLE ALL from a session's
first moment on, before a preloaded library or a login event trigger could run. PostgreSQL's programs get the same ones.
A server refuses a connection that names a setting which it does not know, or which the role may not set: what a server
refused is remembered, and left out from then on.
Source: PostgreSQL documentation, "Setting Parameters" and "Message Flow"; src/backend/utils/init/postinit.c.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

_SINCE_17 = 170000

# Limits meant for the application's sessions end no long read, and what is read or written does not depend on them.
_ANY_ROLE = {
    "role": "none",
    "local_preload_libraries": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_tablespace": "",
    "row_security": "off",
    "search_path": "",
    "client_min_messages": "warning",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "xmloption": "content",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "jit": "off",
}
# session_replication_role decides which triggers fire; zero_damaged_pages would dump a damaged table as an empty one.
_SUPERUSER = {
    "session_preload_libraries": "",
    "session_replication_role": "origin",
    "lc_messages": "C",
    "zero_damaged_pages": "off",
    "ignore_checksum_failure": "off",
    "temp_file_limit": "-1",
}
_ANY_ROLE_SINCE_17 = {"transaction_timeout": "0"}
_SUPERUSER_SINCE_17 = {"event_triggers": "off"}

# Of our own sessions alone: a restore must see the time zone of its server, on which a CHECK may depend.
OWN_TIME_ZONE, OWN_ENCODING = "UTC", "UTF8"
# libpq sends these behind our options, where they win; it says so of each of them.
_ENVIRONMENT = {"DateStyle": _ANY_ROLE["DateStyle"], "TimeZone": OWN_TIME_ZONE}
_FROM_ENVIRONMENT = ("PGDATESTYLE", "PGTZ")


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What a server takes from a role; everything until it has refused something."""

    is_17: bool = True
    is_superuser: bool = True

    def settings(self) -> dict[str, str]:
        settings = dict(_ANY_ROLE)
        if self.is_superuser:  # before those of 17: a role that may not set the first ones is told of them
            settings |= _SUPERUSER
        if self.is_17:
            settings |= _ANY_ROLE_SINCE_17
        if self.is_17 and self.is_superuser:
            settings |= _SUPERUSER_SINCE_17
        return settings


_accepted: dict[tuple[str, str, str], _Accepted] = {}


class SessionStart:
    """How one session begins: with what its server is known to take, and with more or less after each try.

    parts: libpq's keywords of the connection.
    """

    def __init__(self, parts: Mapping[str, str]) -> None:
        address = parts.get("hostaddr") or parts.get("host") or parts.get("service") or ""
        self._server = (address, parts.get("port") or "", parts.get("user") or "")
        self._given = parts.get("options") or ""
        self.is_known = self._server in _accepted
        self._accepted = _accepted.get(self._server, _Accepted())

    def program_options(self) -> str:
        """Return libpq's `options` for a program of PostgreSQL."""
        return " ".join([self._given, *(_option(*pair) for pair in self._accepted.settings().items())]).strip()

    def own_options(self) -> str:
        """Return libpq's `options` for a session of our own."""
        return f"{self.program_options()} {_option('TimeZone', OWN_TIME_ZONE)}"

    def has_learned(self, message: str) -> bool:
        """Say whether another try makes sense after a refusal. message: libpq's, in any language."""
        after = self._accepted
        if any(name in message for name in (*_ANY_ROLE_SINCE_17, *_SUPERUSER_SINCE_17)):
            after = replace(after, is_17=False)
        elif any(name in message for name in _SUPERUSER):
            after = replace(after, is_superuser=False)
        return self._note(after)

    def lacks_settings(self, server_version: int, *, is_superuser: bool) -> bool:
        """Say whether another try makes sense after a success: the server may be another one by now.

        server_version, is_superuser: as the open session says them.
        """
        found = _Accepted(server_version >= _SINCE_17, is_superuser)
        has_more = not found.settings().keys() <= self._accepted.settings().keys()
        self._note(found)
        return has_more

    def _note(self, after: _Accepted) -> bool:
        before, self._accepted = self._accepted, after
        _accepted[self._server] = after
        return after != before


def _option(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
    return f"-c {name}={escaped}"


def set_aside_by_environment() -> dict[str, str]:
    """Return the settings that variables of our own environment have put aside."""
    return _ENVIRONMENT if any(os.environ.get(name) for name in _FROM_ENVIRONMENT) else {}
