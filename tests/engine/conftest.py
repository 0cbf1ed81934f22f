"""Fixtures of tests on a Docker engine: one a run, with every image that the example spec's rendered files name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from synapse_ops.spec import load_spec
from tests.engine.engine import Engine, running_engine, why_no_engine
from tests.engine.images import EXAMPLE, build_everything, write_rendered


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Yield an engine that has the images. Building them takes two minutes on two cores."""
    if (why := why_no_engine()) is not None:
        pytest.skip(why)
    spec, rendered = load_spec(EXAMPLE / "infrastructure.yaml").spec, tmp_path_factory.mktemp("rendered")
    write_rendered(spec, rendered)
    with running_engine(tmp_path_factory.mktemp("engine")) as engine:
        build_everything(engine, spec, rendered)
        yield engine
