"""Fixtures of every test: real servers, made on first use (tests/servers.py). Tests of outside tools run on demand."""

import os

import pytest

pytest_plugins = ["tests.servers"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs outside tools, unless `make prove-release` or CI asks for it."""
    if "SYNAPSE_PROVE" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("tools"):
            item.add_marker(pytest.mark.skip(reason="needs outside tools: make prove-release"))
