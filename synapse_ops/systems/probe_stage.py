"""How far a probe has come: what the probing side and every client of it share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stage:
    """How far a probe has come, in words for the reason of a time-out."""

    words: str = "starting"
