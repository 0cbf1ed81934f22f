"""What a rule of a spec says of fields that are valid by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_ops.spec.faults import FieldPath


@dataclass(frozen=True, slots=True)
class Conflict:
    """Fields that cannot be as they are together: `path` is the one to correct, `others` what it was compared with.

    `{other}` in the texts stands for the first of the others: its position in a list is known only to the caller.
    """

    path: FieldPath
    found: str
    allowed: str
    others: tuple[FieldPath, ...] = ()
