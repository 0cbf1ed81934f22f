"""Realistic seeded data for the embedded stack: the loader of examples/synapse, called with our own progress."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError

LOADER = Path(__file__).parents[2] / "examples" / "synapse" / "load.py"


def load_example_data(
    conninfo: str, size: int | str = "20MB", seed: int = 1, progress: ReportProgress = ignore_progress
) -> Any:
    """Fill the database that a superuser's conninfo names, unless it was filled before.

    size: stored bytes, or text such as "100MB". Returns the loader's report: did_load, size_bytes, documents, took_s.
    Raises ConfigError when the examples are not installed beside the package.
    """
    if not LOADER.is_file():
        raise ConfigError(f"the example data's loader {LOADER} is not installed", hint="Use a checkout of the project.")
    name = "synapse_ops_example_load"
    spec = importlib.util.spec_from_file_location(name, LOADER)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot load {LOADER}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)

    def report(stage: str, done: int, total: int) -> None:
        progress(Progress(stage, done, total, "rows"))

    return module.load_example_data(conninfo, size, seed, report)
