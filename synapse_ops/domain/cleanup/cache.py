"""Which keys a cache cleanup may remove, and whether Redis is what the spec takes it for. Pure.

A key is removed when it matches a pattern of the spec and was not used for the retention. Idle time is kept by the
server for as long as it runs and under every policy of eviction but LFU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_RESERVED_CLIENTS = 32  # Redis keeps these descriptors for itself, and for us there must be one, too


class Level(StrEnum):
    """How much a finding matters. unknown: the server does not say, which is never good."""

    FAULT = "fault"
    WARNING = "warning"
    UNKNOWN = "unknown"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting of the server against the spec."""

    level: Level
    setting: str
    found: str
    reason: str

    def __str__(self) -> str:
        return f"{self.level}: {self.setting} is {self.found}: {self.reason}"


def cleanup_objection(info: Mapping[str, Any]) -> str:
    """Return why keys of a server cannot be removed by idle time, or an empty string. info: INFO, all sections."""
    policy = str(info.get("maxmemory_policy", ""))
    if not policy:
        return "it does not report its maxmemory-policy, so it may not keep idle times"
    if "lfu" in policy:
        return f"under maxmemory-policy {policy} it keeps how often a key is used, not when it was used last"
    if info.get("cluster_enabled"):
        return "it is a node of a cluster, which holds a part of the keys; each primary would have to be named"
    if info.get("role") != "master":
        return f"its role is {info.get('role')}: keys are removed on the primary, whose idle times count"
    return ""


def busy_with(info: Mapping[str, Any]) -> str:
    """Return which backup or restore of its data a server is doing, or an empty string."""
    doing = {
        "loading": "loading its data",
        "rdb_bgsave_in_progress": "saving its data",
        "aof_rewrite_in_progress": "rewriting its log",
        "master_sync_in_progress": "copying its primary",
    }
    return next((words for name, words in doing.items() if info.get(name)), "")


def compare_settings(redis: Any, info: Mapping[str, Any], settings: Mapping[str, str]) -> tuple[Finding, ...]:
    """Compare a server with the spec; the worst first. redis: the spec's block. settings: CONFIG GET, may be empty."""
    found = [
        *_clients(redis, info, settings),
        *_memory(info),
        *_idle_timeout(redis, settings),
        *_persistence(settings),
        *_databases(redis, settings),
    ]
    order = list(Level)
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))


def _clients(redis: Any, info: Mapping[str, Any], settings: Mapping[str, str]) -> list[Finding]:
    limit = settings.get("maxclients") or info.get("maxclients")
    if limit is None:
        return [Finding(Level.UNKNOWN, "maxclients", "not reported", "is it over redis.max_connections?")]
    needed = redis.max_connections + _RESERVED_CLIENTS
    if int(limit) < needed:
        reason = f"redis.max_connections {redis.max_connections} and {_RESERVED_CLIENTS} in reserve need {needed}"
        return [Finding(Level.FAULT, "maxclients", str(limit), reason)]
    return []


def _memory(info: Mapping[str, Any]) -> list[Finding]:
    limit, policy = info.get("maxmemory"), str(info.get("maxmemory_policy", ""))
    found = []
    if limit is None:
        found.append(
            Finding(Level.UNKNOWN, "maxmemory", "not reported", "a cache without a limit ends with the host's")
        )
    elif int(limit) == 0:
        found.append(
            Finding(Level.WARNING, "maxmemory", "0", "without a limit the kernel ends it when memory is short")
        )
    elif policy == "noeviction":
        found.append(Finding(Level.WARNING, "maxmemory-policy", policy, "when it is full, every write fails"))
    objection = cleanup_objection({**info, "role": "master", "cluster_enabled": 0})
    if objection:
        found.append(Finding(Level.FAULT, "maxmemory-policy", policy or "not reported", objection))
    return found


def _idle_timeout(redis: Any, settings: Mapping[str, str]) -> list[Finding]:
    if "timeout" not in settings:
        return [Finding(Level.UNKNOWN, "timeout", "not reported", "does the server close the pool's idle connections?")]
    seconds = int(settings["timeout"])
    if 0 < seconds <= redis.timeout.total_seconds():
        reason = f"it closes connections within redis.timeout {redis.timeout.total_seconds():g} s"
        return [Finding(Level.FAULT, "timeout", f"{seconds} s", reason)]
    if seconds:
        return [Finding(Level.NOTE, "timeout", f"{seconds} s", "idle connections of the pool are closed by the server")]
    return []


def _persistence(settings: Mapping[str, str]) -> list[Finding]:
    if "appendonly" not in settings:
        return [Finding(Level.UNKNOWN, "appendonly", "not reported", "does anything survive a restart?")]
    if settings["appendonly"] == "no" and not settings.get("save"):
        return [Finding(Level.NOTE, "appendonly", "no", "and save is empty: a restart begins with an empty cache")]
    if settings["appendonly"] == "yes" and settings.get("appendfsync") == "no":
        return [Finding(Level.NOTE, "appendfsync", "no", "a crash of the host loses what the kernel had not written")]
    return []


def _databases(redis: Any, settings: Mapping[str, str]) -> list[Finding]:
    count = settings.get("databases")
    if count is not None and redis.db >= int(count):
        return [
            Finding(Level.FAULT, "databases", count, f"redis.db is {redis.db}, the largest there is {int(count) - 1}")
        ]
    return []


def matches_any(key: bytes, patterns: Sequence[re.Pattern[bytes]]) -> bool:
    return any(pattern.fullmatch(key) for pattern in patterns)


def compile_pattern(pattern: str) -> re.Pattern[bytes]:
    """Return what a glob pattern of Redis means: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, and a backslash before any."""
    text = pattern.encode("utf-8", "surrogateescape")
    out, at = b"", 0
    while at < len(text):
        sign = text[at : at + 1]
        at += 1
        if sign == b"*":
            out += b".*"
        elif sign == b"?":
            out += b"."
        elif sign == b"\\" and at < len(text):
            out += re.escape(text[at : at + 1])
            at += 1
        elif sign == b"[" and (end := text.find(b"]", at)) > at:
            inside = text[at:end]
            negated = inside.startswith(b"^")
            out += b"[" + (b"^" if negated else b"") + re.sub(rb"([\\\[&~|^])", rb"\\\1", inside[negated:]) + b"]"
            at = end + 1
        else:
            out += re.escape(sign)
    try:
        return re.compile(out, re.DOTALL)
    except re.error:  # a range the wrong way round: it matches nothing here, so a key may be listed twice
        return re.compile(b"(?!)")
