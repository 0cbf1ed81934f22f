"""Client-side encryption with age (pyrage): streamed, memory flat, optional, and without any default key.

Only public keys (recipients) are needed to write a backup; the secret key (identity) is needed to restore or prove it.
age authenticates every 64 KiB and the end of the stream: a changed or truncated object cannot be read as shorter data.
Source: https://age-encryption.org/v1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from synapse_ops.errors import ChecksumMismatch, ConfigError, KeyMissing

SUFFIX = ".age"  # of an encrypted object's name


class ByteSource(Protocol):
    """What can be read from."""

    def read(self, size: int = -1, /) -> bytes | None: ...


class ByteSink(Protocol):
    """What can be written to."""

    def write(self, data: Any, /) -> int | None: ...


class _Remembering:
    """A stream between Python and pyrage, which turns any exception into its own: keeps ours to be raised again."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size) or b""
        except BaseException as error:
            self.error = error
            raise

    def write(self, data: bytes) -> int:
        try:
            self._stream.write(data)
        except BaseException as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""


def check_recipients(recipients: Sequence[str]) -> None:
    """Raise ConfigError naming every recipient that is not an age or SSH public key."""
    faults = []
    for number, recipient in enumerate(recipients, 1):
        if recipient.upper().startswith("AGE-SECRET-KEY"):
            faults.append(f"number {number} is a secret key (not shown)")
            continue
        try:
            _recipient(recipient)
        except ValueError as fault:
            faults.append(f'number {number}, "{recipient}": {fault}')
    if faults:
        raise ConfigError(
            f"encryption.recipients holds {len(faults)} that are not public keys of age",
            detail="\n".join(faults),
            hint="`age-keygen` prints one: age1 and 58 letters and digits. Never put a secret key there.",
        )


def _recipient(text: str) -> Any:
    import pyrage

    kinds: tuple[Any, ...] = (pyrage.x25519.Recipient, pyrage.ssh.Recipient, pyrage.tagpq.Recipient)
    fault = "not a public key"
    for kind in kinds:
        try:
            return kind.from_str(text)
        except pyrage.RecipientError as error:
            fault = str(error)
    raise ValueError(fault)


def encrypt_stream(source: ByteSource, sink: ByteSink, recipients: Sequence[str]) -> None:
    """Encrypt everything that `source` gives into `sink`; raises what either of them raised.

    recipients: at least one public key; each of their secret keys alone opens the result.
    """
    import pyrage

    check_recipients(recipients)
    reader, writer = _Remembering(source), _Remembering(sink)
    try:
        pyrage.encrypt_io(reader, writer, [_recipient(text) for text in recipients])
    except (pyrage.EncryptError, OSError) as error:
        if cause := reader.error or writer.error:
            raise cause from None
        raise ConfigError("cannot encrypt for the recipients given", detail=str(error)) from error


def decrypt_stream(
    source: ByteSource, sink: ByteSink, identities: Sequence[str], *, what: str, recipients: Sequence[str] = ()
) -> None:
    """Decrypt everything that `source` gives into `sink`; raises what either of them raised.

    identities: secret keys, AGE-SECRET-KEY-... . recipients: the public keys in backup.json, for the message.
    Raises KeyMissing when none of the identities opens it, ChecksumMismatch when it was changed or cut short. Bytes
    reach `sink` before the end has been authenticated: discard them on any exception.
    """
    import pyrage

    reader, writer = _Remembering(source), _Remembering(sink)
    keys = _identities(identities)
    if not keys:
        raise _key_missing(what, recipients)
    try:
        pyrage.decrypt_io(reader, writer, keys)
    except (pyrage.DecryptError, OSError) as error:
        if cause := reader.error or writer.error:
            raise cause from None
        if "No matching keys" in str(error):
            raise _key_missing(what, recipients) from None
        raise ChecksumMismatch(f"cannot decrypt {what}: it was changed or cut short", detail=str(error)) from error


def _key_missing(what: str, recipients: Sequence[str]) -> KeyMissing:
    return KeyMissing(
        f"no key at hand opens {what}",
        recipients=recipients or ("an unnamed recipient",),
        hint="Give the secret key of one of them: encryption.identity in the spec, or SYNAPSE_AGE_IDENTITY_FILE.",
    )


def _identities(texts: Sequence[str]) -> list[Any]:
    import pyrage

    keys = []
    for number, text in enumerate(texts, 1):
        try:
            keys.append(pyrage.x25519.Identity.from_str(text))
        except pyrage.IdentityError:
            raise ConfigError(
                f"age secret key {number} of {len(texts)} is not one", hint="It starts with AGE-SECRET-KEY-1."
            ) from None
    return keys
