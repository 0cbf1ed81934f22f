"""age streams: only the right key opens them, a changed or cut stream is never read as shorter data."""

from __future__ import annotations

import io

import pyrage
import pytest

from synapse_ops.errors import ChecksumMismatch, ConfigError, KeyMissing, Unreachable
from synapse_ops.systems.encryption import check_recipients, decrypt_stream, encrypt_stream

PLAIN = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def keys() -> list[tuple[str, str]]:
    """Two pairs of recipient and identity."""
    made = [pyrage.x25519.Identity.generate() for _ in range(2)]
    return [(str(identity.to_public()), str(identity)) for identity in made]


def sealed(recipients: list[str]) -> bytes:
    sink = io.BytesIO()
    encrypt_stream(io.BytesIO(PLAIN), sink, recipients)
    return sink.getvalue()


def test_each_recipient_alone_opens_it(keys: list[tuple[str, str]]) -> None:
    """One of several keys is enough."""
    data = sealed([recipient for recipient, _ in keys])
    for _, identity in keys:
        sink = io.BytesIO()
        decrypt_stream(io.BytesIO(data), sink, [identity], what="x")
        assert sink.getvalue() == PLAIN


@pytest.mark.parametrize("count", [0, 1])
def test_a_missing_key_names_the_recipient(keys: list[tuple[str, str]], count: int) -> None:
    """Without the right key the recipient is named, so that an operator knows which key to look for."""
    data = sealed([keys[0][0]])

    with pytest.raises(KeyMissing) as raised:
        decrypt_stream(io.BytesIO(data), io.BytesIO(), [keys[1][1]][:count], what="x", recipients=[keys[0][0]])

    assert raised.value.recipients == (keys[0][0],)
    assert keys[0][0] in raised.value.render()


@pytest.mark.parametrize("harm", ["changed", "cut", "not age"])
def test_harmed_data_is_an_integrity_error(keys: list[tuple[str, str]], harm: str) -> None:
    """A flipped byte, a lost end and foreign bytes are all found."""
    data = bytearray(sealed([keys[0][0]]))
    if harm == "changed":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        del data[-100:]
    else:
        data[:] = b"not an age file" * 100

    with pytest.raises(ChecksumMismatch):
        decrypt_stream(io.BytesIO(data), io.BytesIO(), [keys[0][1]], what="x")


def test_the_source_s_own_error_comes_through(keys: list[tuple[str, str]]) -> None:
    """A store that fails under the stream is reported as itself, not as a fault of encryption."""

    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            raise Unreachable("the store is gone")

    with pytest.raises(Unreachable):
        encrypt_stream(Broken(), io.BytesIO(), [keys[0][0]])


def test_a_secret_key_as_recipient_is_refused_without_being_shown(keys: list[tuple[str, str]]) -> None:
    """Every faulty recipient is listed; a secret key among them is not repeated."""
    with pytest.raises(ConfigError) as raised:
        check_recipients([keys[0][0], "age1nonsense", keys[0][1]])

    assert "age1nonsense" in raised.value.detail
    assert keys[0][1] not in raised.value.render()
