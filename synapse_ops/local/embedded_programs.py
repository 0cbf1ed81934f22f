"""Whether this host has what the embedded stack is made of, found out without importing or running any of it."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path


def has_embedded_programs() -> bool:
    """Whether the extra `embedded` is installed, in a checkout with the stand-in application."""
    example = Path(__file__).parents[2] / "examples" / "synapse" / "app.py"
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    has_store = weed.is_file() or shutil.which("weed") is not None
    return example.is_file() and has_store and importlib.util.find_spec("fastapi") is not None
