"""What a copy is held to when nobody stopped writing: what stood still, exactly; what moved, to nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.vectors.config import compare_config, creation_body, parse_version, update_body
from synapse_ops.domain.vectors.fingerprint import (
    CanaryQuery,
    CopyFacts,
    Reading,
    VectorFingerprint,
    canaries_from_json,
    canaries_to_json,
    compare_points,
    recall,
)
from synapse_ops.domain.vectors.placement import ACTIVE, NodeView, place_shards
from synapse_ops.domain.vectors.points import (
    PointsDigest,
    canonical_point,
    order_of,
    parse_id,
    point_hash,
    sample_rank,
)
from synapse_ops.errors import DocumentUnreadable

CONTENTS = st.dictionaries(st.integers(0, 30), st.sampled_from("abc"), max_size=12)


def reading(content: dict[int, str]) -> Reading:
    digest = PointsDigest()
    hashes = {}
    for one in sorted(content):
        canonical = canonical_point(one, [1.0], {"v": content[one]})
        digest.add(one, canonical)
        hashes[str(one)] = point_hash(canonical)
    return Reading(digest.count, digest.ids, digest.points, hashes)


def copy_of(content: dict[int, str], expected: VectorFingerprint) -> CopyFacts:
    """Return what the engine would say of a copy with this content."""
    read = reading(content)
    wanted = set(expected.ids)
    return CopyFacts(
        counts={0: read.count},
        engine_version="0",
        segment_versions=("0",),
        points_digest=read.points_digest,
        ids_digest=read.ids_digest,
        hashes={one: found for one, found in read.hashes.items() if one in wanted},
        unlisted=len(read.hashes.keys() - wanted),
    )


def between(before: dict[int, str], after: dict[int, str], choices: list[bool]) -> dict[int, str]:
    """Return a state that a snapshot between the readings may hold: each point as before or as after."""
    found: dict[int, str] = {}
    for number, one in enumerate(sorted(before.keys() | after.keys())):
        source = before if choices[number % len(choices)] else after
        if one in source:
            found[one] = source[one]
    return found


@given(CONTENTS, CONTENTS, st.lists(st.booleans(), min_size=1, max_size=8))
def test_any_state_between_the_two_readings_is_accepted(
    before: dict[int, str], after: dict[int, str], choices: list[bool]
) -> None:
    """Each point as it was before or as it was after: that is what a window is."""
    expected = VectorFingerprint.of("all", "s", reading(before), reading(after))

    assert compare_points(expected, copy_of(between(before, after, choices), expected), ()).differences == ()


@given(CONTENTS, CONTENTS, st.data())
def test_a_point_that_stood_still_and_is_lost_or_changed_is_always_found(
    before: dict[int, str], after: dict[int, str], data: st.DataObject
) -> None:
    still = sorted(one for one in before if after.get(one) == before[one])
    if not still:
        return
    expected = VectorFingerprint.of("all", "s", reading(before), reading(after))
    content = dict(after)
    victim = data.draw(st.sampled_from(still))
    if data.draw(st.booleans()):
        del content[victim]
    else:
        content[victim] += "x"

    assert compare_points(expected, copy_of(content, expected), ()).differences


@given(CONTENTS, CONTENTS)
def test_without_a_window_nothing_but_the_same_content_is_equal(content: dict[int, str], other: dict[int, str]) -> None:
    expected = VectorFingerprint.of("all", "s", reading(content), reading(content))

    assert (compare_points(expected, copy_of(other, expected), ()).differences == ()) == (content == other)


@given(CONTENTS, CONTENTS)
def test_a_fingerprint_survives_its_json(before: dict[int, str], after: dict[int, str]) -> None:
    expected = VectorFingerprint.of("all", "s", reading(before), reading(after))

    assert VectorFingerprint.from_json(expected.to_json()) == expected
    with pytest.raises(DocumentUnreadable):
        VectorFingerprint.from_json(expected.to_json()[:-5])


def test_stored_queries_survive_their_json_and_a_miss_is_counted_but_a_tie_is_not() -> None:
    top = (("1", 0.9), ("2", 0.5), ("3", 0.1), ("4", 0.1))
    query = CanaryQuery("text", [1.0, 2.0], lower_is_better=False, top=top)

    assert canaries_from_json(canaries_to_json([query])) == (query,)
    assert recall(query, [("1", 0.9), ("2", 0.5), ("4", 0.1), ("9", 0.1)]) == 1
    assert recall(query, [("1", 0.9), ("9", 0.5), ("3", 0.1), ("4", 0.1)]) == 0.75
    assert recall(query, []) == 0


@given(st.dictionaries(st.text(max_size=5), st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=4))
def test_a_points_bytes_do_not_depend_on_the_order_of_names(vectors: dict[str, list[float]]) -> None:
    turned = dict(reversed(vectors.items()))

    assert canonical_point(1, vectors, {"a": 1, "b": [None]}) == canonical_point(1, turned, {"b": [None], "a": 1})


def test_a_sparse_vector_is_the_same_in_any_order_of_its_indices() -> None:
    one = canonical_point(1, {"words": {"indices": [3, 1], "values": [0.5, 0.25]}}, None)

    assert one == canonical_point(1, {"words": {"indices": [1, 3], "values": [0.25, 0.5]}}, {})
    assert one != canonical_point(1, {"words": {"indices": [1, 3], "values": [0.5, 0.25]}}, {})


@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.uuids().map(str)), unique=True))
def test_ids_ascend_numbers_first_and_come_back_from_text(ids: list[Any]) -> None:
    ordered = sorted(ids, key=order_of)

    assert [isinstance(one, str) for one in ordered] == sorted(isinstance(one, str) for one in ordered)
    assert [parse_id(str(one)) for one in ids] == ids
    assert len({sample_rank("seed", one) for one in ids}) == len(ids)


def test_points_out_of_order_are_refused() -> None:
    digest = PointsDigest()
    digest.add(2)
    with pytest.raises(ValueError, match="does not come after"):
        digest.add(2)


@given(st.lists(st.dictionaries(st.integers(0, 3), st.sampled_from([ACTIVE, "Dead", "Partial"])), max_size=4))
def test_a_shard_is_only_ever_asked_of_an_active_replica_or_is_a_fault(states: list[dict[int, str]]) -> None:
    views = [NodeView(peer, local, {}) for peer, local in enumerate(states)]
    placement = place_shards(views, 4)

    assert sorted(placement.candidates) == [0, 1, 2, 3]
    for shard, peers in placement.candidates.items():
        assert set(peers) == {peer for peer, local in enumerate(states) if local.get(shard) == ACTIVE}
        assert bool(peers) != any(f"shard {shard} " in fault for fault in placement.faults)


def test_a_shard_more_than_configured_is_a_fault() -> None:
    """A resharding under way: points are in two shards, or in none."""
    views = [NodeView(1, {0: ACTIVE, 1: ACTIVE}, {})]

    assert any("resharding" in fault for fault in place_shards(views, 1).faults)
    assert place_shards(views, None).faults == ()


def test_a_collection_is_made_again_as_qdrant_told_of_it() -> None:
    config = {
        "params": {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 2, "read_fan_out_factor": 2},
        "hnsw_config": {"m": 8},
        "optimizer_config": {"indexing_threshold": 1},
        "quantization_config": None,
        "strict_mode_config": {"enabled": True},
        "metadata": {"owner": "me", "synapse_ops": {"generation": "00000000"}},
    }

    assert creation_body(config) == {
        "vectors": {"size": 4, "distance": "Dot"},
        "shard_number": 2,
        "hnsw_config": {"m": 8},
        "optimizers_config": {"indexing_threshold": 1},
        "metadata": {"owner": "me"},
    }
    assert update_body(config) == {"params": {"read_fan_out_factor": 2}, "strict_mode_config": {"enabled": True}}
    assert compare_config(config, {}, ()) == ()
    assert parse_version("1.18.3") > parse_version("1.9.10-dev")
