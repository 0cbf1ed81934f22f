"""Keys of a repository: what is ours is recognised exactly, and everything else is left alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.backup.layout import (
    BackupPlace,
    Identity,
    attempt_name,
    format_time,
    is_own_name,
    label_of_pin,
    new_backup_id,
    parse_key,
    parse_time,
    pin_name,
    proof_name,
    reading_name,
    started_at_of,
)
from synapse_ops.errors import ConfigError

moments = st.floats(946684800, 7258118400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
identities = st.builds(
    Identity, st.from_regex(r"[0-9]{1,20}", fullmatch=True), st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
)
backup_ids = st.builds(new_backup_id, moments, st.binary(min_size=3, max_size=3))
places = st.builds(BackupPlace, identities, st.just("dump"), names, backup_ids)
own_names = st.one_of(
    st.sampled_from(["started.json", "heartbeat.json", "backup.json", "database.dump", "database.dump.age"]),
    st.sampled_from(["globals.sql", "globals.sql.age", "fingerprint.json", "structure.json.age"]),
    st.builds(proof_name, moments),
    st.builds(attempt_name, moments),
    st.builds(pin_name, names),
    st.builds(reading_name, names),
)


@given(places, own_names)
def test_parsing_inverts_the_key_of_every_object_that_we_write(place: BackupPlace, name: str) -> None:
    """Whatever a database, pin or reader is called, its key leads back to it."""
    parsed = parse_key(place.key(name))

    assert parsed is not None
    assert (parsed.place, parsed.name) == (place, name)


@given(places, own_names)
def test_keys_hold_no_segment_that_a_store_may_refuse_or_lose(place: BackupPlace, name: str) -> None:
    """No empty, `.` or `..` segment, five segments in all, ASCII only."""
    segments = place.key(name).split("/")

    assert len(segments) == 5
    assert not {"", ".", ".."} & set(segments)
    assert place.key(name).isascii()


@given(names)
def test_pin_labels_come_back_as_they_were_given(label: str) -> None:
    """A label is for people: any text."""
    assert label_of_pin(pin_name(label)) == label


@given(st.text(max_size=120))
def test_no_other_key_is_ours(key: str) -> None:
    """What is recognised is spelled exactly as we would spell it."""
    parsed = parse_key(key)

    assert parsed is None or parsed.place.key(parsed.name) == key


PLACE = BackupPlace(Identity("7400000000000000001", "0a1b2c3d"), "dump", "synapse", "20261101T120000Z-00000a")


@pytest.mark.parametrize(
    "key",
    [
        "README.md",
        PLACE.key(""),
        PLACE.key("notes.txt"),
        PLACE.key("database.dump.bak"),
        PLACE.key("backup.json/x"),
        PLACE.key("proof-today.json"),
        PLACE.key("backup.json").replace("20261101T", "20260230T"),
        PLACE.key("backup.json").replace("20261101T", "20261101t"),
        PLACE.key("backup.json").replace("2026", "٢٠٢٦"),
        PLACE.key("pin-.json"),
        PLACE.key("pin-a.b.json"),
        PLACE.key("BACKUP.JSON"),
        PLACE.key("backup.json").replace("synapse", "syn%61pse"),
        PLACE.key("backup.json").replace("synapse", "syn apse"),
        PLACE.key("backup.json").replace("0a1b2c3d", "0A1B2C3D"),
        PLACE.key("backup.json").replace("/dump/", "/copy/"),
        "leases/expire.json",
        "plans/expire-00.jsonl",
    ],
)
def test_a_foreign_key_is_nothing_of_ours(key: str) -> None:
    """Another spelling, another name, another folder: not written by us, so never judged and never deleted."""
    assert parse_key(key) is None


@pytest.mark.parametrize("name", ["started.json\n", "\nbackup.json", "backup.jsonx", "xbackup.json", "database_dump"])
def test_a_name_is_ours_only_as_a_whole(name: str) -> None:
    """Nothing before, nothing after, a final newline included."""
    assert not is_own_name(name)


@given(moments)
def test_times_come_back_to_the_second(moment: datetime) -> None:
    """Ids and proof names carry whole seconds in UTC."""
    whole = moment.replace(microsecond=0)

    assert parse_time(format_time(moment)) == whole
    assert started_at_of(new_backup_id(moment, b"abc")) == whole


def test_a_backup_id_of_another_form_is_refused_with_an_example() -> None:
    """The operator sees what an id looks like and how to list them."""
    with pytest.raises(ConfigError, match="20261123T201726Z-3f9a1c") as caught:
        started_at_of("yesterday")

    assert "backup list" in caught.value.hint
