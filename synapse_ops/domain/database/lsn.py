"""A position in PostgreSQL's write-ahead log: 64 bits, printed `X/Y` in upper-case hexadecimal.

Never a string in decisions: "0/9" sorts after "0/10" as text. Lag in bytes is a difference of two.
Source: PostgreSQL documentation, "pg_lsn Type".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True, order=True)
class Lsn:
    """`position` is in bytes from the beginning of the log, 0 to 2**64 - 1; ordered as the log is."""

    position: int

    def __post_init__(self) -> None:
        if not 0 <= self.position <= _MAX:
            raise ValueError(f"{self.position} is not a WAL position of 64 bits")

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Return the position written as `X/Y`; the inverse of `str`. Raises ValueError for anything else."""
        match = _LSN.fullmatch(text)
        if match is None:
            raise ValueError(f'"{text}" is not a WAL position of the form 0/5A3F1C8')
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.position >> 32:X}/{self.position & 0xFFFFFFFF:X}"

    def __add__(self, size_bytes: int) -> Lsn:
        return Lsn(self.position + size_bytes)

    def __sub__(self, other: Lsn) -> int:
        """Return the bytes from `other` to here; negative when this is the earlier one."""
        return self.position - other.position
