"""Fixtures of tests on a control plane: one a run, started on first use; a namespace for each spec that is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.applied import Applied, rendered_and_applied
from tests.cluster.control_plane import ControlPlane, running_control_plane
from tests.cluster.node import Node, running_node, why_no_node
from tests.cluster.stack import Stack, start_stack
from tests.cluster.stack_images import stack_images, why_no_images

ApplySpec = Callable[[str, Mapping[str, Any]], Applied]


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running_control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real node with a control plane of its own; tests are skipped, with the reason, where none can run."""
    reason = why_no_node()
    if reason is not None:
        pytest.skip(reason)
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of the images that the example spec's stack needs."""
    reason = why_no_node() or why_no_images()
    if reason is not None:
        pytest.skip(reason)
    return stack_images(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def stack(node: Node, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The stack that tests of the node share; what they change in it they change back."""
    return start_stack(node, tmp_path_factory.mktemp("stack"), images)


@pytest.fixture(scope="session")
def apply_spec(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> ApplySpec:
    """Return what applies a spec under a name, once: who asks again is given the same."""
    done: dict[str, Applied] = {}

    def apply(name: str, changes: Mapping[str, Any]) -> Applied:
        if name not in done:
            done[name] = rendered_and_applied(control_plane, tmp_path_factory.mktemp("rendered"), name, changes)
        return done[name]

    return apply
