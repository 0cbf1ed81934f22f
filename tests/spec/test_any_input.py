"""Whatever stands in a file, loading ends in a spec or in faults: never in another error, never in a torn message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from synapse_ops.spec import default_spec
from synapse_ops.spec.faults import Fault
from synapse_ops.spec.loading import check_text

FILE = Path("f")
EXAMPLE = Path(__file__).parents[2].joinpath("examples", "synapse", "infrastructure.yaml").read_text(encoding="utf-8")
KEYS = sorted(
    {key for block in default_spec().model_dump(mode="json").values() if isinstance(block, dict) for key in block}
)

quick = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking loads hundreds of documents
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["30s", "4Gi", "0 0 * * *", "env:X", "/x", "s3://abc/", "a", "0.0.0.0/0", "cpu > 80%", "u:p@h"])
)
_values = st.recursive(
    _scalars,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=8,
)
_documents = st.dictionaries(st.sampled_from(list(default_spec().model_dump())), _values, min_size=1, max_size=6)


def _assert_told(faults: list[Fault]) -> None:
    for fault in faults:
        message = fault.render(FILE)
        assert "\n" not in message
        assert "Pydantic" not in message
        assert message.encode("utf-8")
        assert json.dumps(fault.as_json(FILE))


@given(st.text(max_size=60) | st.text(st.sampled_from(" \n\t:-[]{}'\"#&*!|>%@`?,a0"), max_size=40))
@quick
def test_any_text_ends_in_a_spec_or_in_faults(text: str) -> None:
    """Also text made of YAML's own marks."""
    loaded, faults = check_text(text, FILE)

    assert (loaded is None) == bool(faults)
    _assert_told(faults)


@given(
    st.integers(0, len(EXAMPLE) - 1), st.sampled_from([*":-[]{}'\"#&*!|>%@`?,\t\n 0", "", "\ud800"]), st.integers(0, 3)
)
@quick
def test_the_example_with_a_slip_ends_in_a_spec_or_in_faults(position: int, slip: str, lost: int) -> None:
    """A character too many or too few anywhere in a real file."""
    _, faults = check_text(EXAMPLE[:position] + slip + EXAMPLE[position + lost :], FILE)

    _assert_told(faults)


@given(_documents)
@quick
def test_any_value_in_any_field_ends_in_a_spec_or_in_faults(document: dict[str, Any]) -> None:
    """Values of every kind where other kinds belong."""
    loaded, faults = check_text(json.dumps(document), FILE)

    assert (loaded is None) == bool(faults)
    _assert_told(faults)
