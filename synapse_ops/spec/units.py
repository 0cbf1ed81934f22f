"""Quantities as operators write them: `30s`, `4Gi`, `500m`, `7d`; each `parse_*` has a `format_*` that inverts it.

Everything is exact: durations are whole milliseconds, sizes whole bytes, cores whole thousandths. A value that would
have to be rounded is refused, because a silently rounded limit is not the limit that was set. ValueErrors name
what is allowed. Suffixes are those of Prometheus (durations) and Kubernetes (sizes and cores); a size may
also say `MiB` or `MB`.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation

DURATION_FORM = "a duration such as 500ms, 30s, 5m, 1h30m or 7d (units ms s m h d w; a bare number is seconds)"
RETENTION_FORM = "a retention such as 7d, 12h or 4w (a bare number is days)"
SIZE_FORM = (
    "a size such as 4Gi, 512MiB or 10MB (units B, k M G T for 1000s, Ki Mi Gi Ti for 1024s; a bare number is bytes)"
)
CORES_FORM = "a number of CPU cores such as 2, 0.5 or 500m, in steps of 1m"

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION_PART = re.compile(r"(\d{1,15})(ms|s|m|h|d|w)")
_DURATION = re.compile(r"(?:\d{1,15}(?:ms|s|m|h|d|w))+")
_LONGEST_MS = (
    100 * 366 * _MS["d"]
)  # a century: more is a slip of the keyboard, and stays far from timedelta's own limit

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?) ?(|B|[kKMGTP]B?|[KMGTP]i(?:B)?)")
_SIZE_POWER = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_LARGEST_SIZE = 1 << 60

_CORES = re.compile(r"\d{1,9}m|\d{1,6}(?:\.\d{1,3})?")


def parse_duration(value: object, *, bare_unit: str = "s") -> timedelta:
    """Return the duration written as text, or as a bare number of `bare_unit`.

    Units go from large to small, each once, as in `1h30m`. Range: 0 to a century.
    """
    if isinstance(value, timedelta):
        return value
    form = RETENTION_FORM if bare_unit == "d" else DURATION_FORM
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(form)
    text = str(value).strip()
    if re.fullmatch(r"\d{1,15}(?:\.\d{1,9})?", text):
        total = Decimal(text) * _MS[bare_unit]
    elif _DURATION.fullmatch(text):
        parts = _DURATION_PART.findall(text)
        units = [_MS[unit] for _, unit in parts]
        if units != sorted(set(units), reverse=True):
            raise ValueError(f"{form}, units from large to small, each once")
        total = sum((Decimal(count) * _MS[unit] for count, unit in parts), Decimal(0))
    else:
        raise ValueError(form)
    if total != int(total):
        raise ValueError(f"{form}, in whole milliseconds")
    if total > _LONGEST_MS:
        raise ValueError(f"{form}, at most 36600d")
    return timedelta(milliseconds=int(total))


def format_duration(value: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads back as the same value, such as `1h30m` or `0s`."""
    left = value // timedelta(milliseconds=1)
    if left == 0:
        return "0s"
    text = ""
    for unit in ("d", "h", "m", "s", "ms"):
        count, left = divmod(left, _MS[unit])
        if count:
            text += f"{count}{unit}"
    return text


def parse_size(value: object) -> int:
    """Return the size in bytes. Range: 0 to 1 EiB."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(SIZE_FORM)
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(SIZE_FORM)
    suffix = match[2].removesuffix("B")
    scale = 1
    if suffix:
        base = 1024 if suffix.endswith("i") else 1000
        scale = int(base ** _SIZE_POWER[suffix[0].upper()])
    size = Decimal(match[1]) * scale
    if size != int(size):
        raise ValueError(f"{SIZE_FORM}, in whole bytes")
    if size > _LARGEST_SIZE:
        raise ValueError(f"{SIZE_FORM}, at most 1024Pi")
    return int(size)


def format_size(size: int) -> str:
    """Return the size with the largest suffix that divides it: `4Gi`, `1500`; `parse_size` inverts it."""
    for unit in ("Pi", "Ti", "Gi", "Mi", "Ki"):
        scale = 1024 ** _SIZE_POWER[unit[0]]
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def parse_cores(value: object) -> Decimal:
    """Return CPU cores as an exact decimal in steps of 0.001, from `2`, `0.5` or `500m`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(CORES_FORM)
    text = str(value).strip()
    if not _CORES.fullmatch(text):
        raise ValueError(CORES_FORM)
    try:
        cores = Decimal(text[:-1]) / 1000 if text.endswith("m") else Decimal(text)
    except InvalidOperation as fault:
        raise ValueError(CORES_FORM) from fault
    return cores.normalize()


def format_cores(cores: Decimal) -> str:
    """Return `2` for whole cores and `500m` for parts, as Kubernetes prints them; `parse_cores` inverts it."""
    thousandths = int(cores * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
