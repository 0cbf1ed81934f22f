"""Fixtures of every test: real servers, made on first use (tests/servers.py). Tests of outside tools run on demand."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.surroundings import without_other_work

pytest_plugins = ["tests.servers", "tests.dagster_instances"]

without_other_work(os.environ)


@pytest.fixture(autouse=True)
def sigterm_is_heard() -> Iterator[None]:
    """Undo what an in-process Dagster run leaves: SIGTERM ignored, which every program started later would inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) != before:
        signal.signal(signal.SIGTERM, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs outside tools, unless `make prove-release` or CI asks for it."""
    if "SYNAPSE_PROVE" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("tools"):
            item.add_marker(pytest.mark.skip(reason="needs outside tools: make prove-release"))
