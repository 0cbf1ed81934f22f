"""The form of every JSON document of the repository: `started.json`, `backup.json`, `proof-<time>.json`.

They are read by people and by other tools years later, so the form is strict on writing (sorted keys, UTF-8, one final
newline, nothing secret) and strict on reading: an unknown format version is refused, never guessed at.
Source of the rules: docs/repository-format.md.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from synapse_ops.domain.bounded_json import read_json
from synapse_ops.errors import DocumentUnreadable

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LsnText = Annotated[str, Field(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


_SEAL = "document_sha256"


class Part(BaseModel):
    """A part of a document. Frozen; unknown fields are refused, so that a typo does not pass as a field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Part):
    """One JSON document of the repository. VERSIONS: of its format, those that are read; a new one has the default.

    SEALED: it carries the sha256 of its own other fields, so that a changed digit is no fact.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (1,)
    SEALED: ClassVar[bool] = False
    format_version: int = Field(default=1, strict=True)

    @field_validator("format_version")
    @classmethod
    def _refuse_another_version(cls, value: int) -> int:
        if value not in cls.VERSIONS:
            raise ValueError(f"it is {value}, this reads {' and '.join(map(str, cls.VERSIONS))}")
        return value

    def body(self) -> dict[str, Any]:
        """Return the fields as they are stored."""
        return self.model_dump(mode="json")

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, two spaces, UTF-8, one final newline."""
        body = self.body()
        return _canonical({**body, _SEAL: _sha256_of(body)} if self.SEALED else body)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, *, key: str) -> Self:
        """Return the document stored under `key`; raises DocumentUnreadable with the first fault's field."""
        return cls.of_body(read_body(data, key=key), data, key=key)

    @classmethod
    def of_body(cls, body: Any, data: bytes, *, key: str) -> Self:
        """Return the document of a value that `read_body` has read from `data`."""
        if cls.SEALED and isinstance(body, dict) and _SEAL in body:
            rest = {name: value for name, value in body.items() if name != _SEAL}
            as_written = data.replace(f'  "{_SEAL}": "{body[_SEAL]}",\n'.encode(), b"", 1)  # saves writing it anew
            if hashlib.sha256(as_written).hexdigest() != body[_SEAL] and body[_SEAL] != (found := _sha256_of(rest)):
                raise _unreadable(data, key, f"{_SEAL}: the other fields have {found}")
            body = rest
        try:
            return cls.model_validate(body)
        except ValidationError as invalid:
            fault = invalid.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in fault["loc"]) or "the whole document"
            raise _unreadable(data, key, f"{field}: {fault['msg'].lower()}") from invalid


def _canonical(body: Any) -> bytes:
    return (json.dumps(body, sort_keys=True, ensure_ascii=False, indent=2) + "\n").encode()


def _sha256_of(body: Any) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def read_body(data: bytes, *, key: str) -> Any:
    """Return the JSON value stored under `key`, which is of any form; raises DocumentUnreadable."""
    try:
        return read_json(data)
    except ValueError as fault:
        raise _unreadable(data, key, f"the whole document: {fault}") from fault


def _unreadable(data: bytes, key: str, reason: str) -> DocumentUnreadable:
    return DocumentUnreadable(
        f"cannot read {key}: {reason}",
        detail=f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}",
        hint="Was it cut short, edited by hand, or written by a newer version?",
    )


class ObjectRecord(Part):
    """One object of a backup as it was written and read back.

    name: the object's name under the backup's prefix. size_bytes, sha256, etag: of the stored bytes (after encryption).
    plain_size_bytes: before encryption; None where it was not counted.
    """

    name: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    etag: str
    plain_size_bytes: int | None = Field(default=None, ge=0)
