"""Fixtures of every test: real servers, made on first use (tests/servers.py). Tests of outside tools run on demand."""

import os
import signal
from collections.abc import Iterator

import pytest

from synapse_ops import redaction
from tests.surroundings import without_other_work

pytest_plugins = ["tests.servers", "tests.dagster_instances"]

without_other_work(os.environ)
# A run in the background, or under nohup, ignores these, and so would every program that a test starts and signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def sigterm_is_heard() -> Iterator[None]:
    """Undo what an in-process Dagster run leaves: SIGTERM ignored, which every program started later would inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) != before:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> Iterator[None]:
    """Forget what a test had redacted: its password "secret" would be masked in the messages of all later ones."""
    known, pattern = redaction._known, redaction._pattern
    redaction._known, redaction._pattern = {}, None
    yield
    redaction._known, redaction._pattern = known, pattern


FIRST = ("local", "database", "services", "vectors", "redis", "release", "defs")  # whole stacks, restores, Dagster
LAST = ("manifests", "spec", "domain")  # no server at all

NEEDS = (
    ("tools", "SYNAPSE_PROVE", "prove-release"),
    ("cluster", "SYNAPSE_TEST_CLUSTER", "test-cluster"),
    ("engine", "SYNAPSE_TEST_ENGINE", "test-compose"),
)


def _turn(item: pytest.Item) -> int:
    """Return when a test's directory has its turn: workers that end at the same time end with short files."""
    folder = item.path.parent.name
    return FIRST.index(folder) if folder in FIRST else len(FIRST) + (LAST.index(folder) + 1 if folder in LAST else 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the longest tests first, and skip what needs other programs, unless their target runs it."""
    items.sort(key=_turn)
    for marker, variable, target in NEEDS:
        for item in items if variable not in os.environ else ():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"needs programs of make {target}"))
