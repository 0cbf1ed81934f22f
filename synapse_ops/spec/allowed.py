"""What each field allows, in words, taken from the models' own JSON Schema: messages, docs and editors say the same."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from synapse_ops.spec.block import FORM, REFERENCE
from synapse_ops.spec.document import Spec, default_spec
from synapse_ops.spec.faults import FieldPath
from synapse_ops.spec.units import format_duration


class _Generator(GenerateJsonSchema):
    """Writes default durations as a spec does (`1m`), where pydantic would write `PT1M`."""

    def encode_default(self, dft: Any) -> Any:
        """Return the default as JSON."""
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a spec file, with a description of every block and field."""
    schema = Spec.model_json_schema(mode="validation", schema_generator=_Generator)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Synapse Ops spec"
    schema["minProperties"] = 1
    written = default_spec().model_dump(mode="json")
    for key, block in schema["properties"].items():
        block["default"] = written[key]
        if isinstance(written[key], dict):
            _write_defaults(schema, block, written[key])
    _allow_flat_backup(schema)
    return schema


def _write_defaults(schema: dict[str, Any], block: dict[str, Any], written: dict[str, Any]) -> None:
    """Put the defaults of a block's fields as a spec would write them (`4Gi`), where pydantic puts its own values."""
    reference = block.get("$ref") or next((part["$ref"] for part in block.get("anyOf", ()) if "$ref" in part), None)
    if reference is None:
        return
    for key, field in schema["$defs"][reference.rsplit("/", 1)[-1]]["properties"].items():
        field["default"] = written[key]
        if isinstance(written[key], dict):
            _write_defaults(schema, field, written[key])


def _allow_flat_backup(schema: dict[str, Any]) -> None:
    """Let the keys of a flat `backup` block, the vector store's, stand beside `database` and `vectors`."""
    definitions = schema["$defs"]
    flat = definitions["VectorBackup"]["properties"]
    for key, field in flat.items():
        definitions["Backup"]["properties"][key] = field | {
            "description": f"Short for `vectors.{key}`. {field['description']}"
        }


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with its reference followed and `null` taken out of its alternatives."""
    while True:
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            schema = {k: v for k, v in schema.items() if k != "$ref"} | json_schema()["$defs"][name]
        elif "anyOf" in schema:
            rest = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
            schema = rest[0] | {k: v for k, v in schema.items() if k != "anyOf"} | {"x-nullable": True}
        else:
            return schema


def schema_at(path: FieldPath) -> dict[str, Any] | None:
    """Return the resolved schema of a field, or None where the spec knows no such field."""
    schema = resolved(json_schema())
    for part in path:
        if isinstance(part, int):
            below = schema.get("items")
        else:
            patterned = next(iter(schema.get("patternProperties", {}).values()), None)
            below = schema.get("properties", {}).get(part) or patterned or schema.get("additionalProperties")
        if not isinstance(below, dict):
            return None
        schema = resolved(below)
    return schema


def known_keys(path: FieldPath) -> tuple[str, ...]:
    """Return the keys that the block at `path` may have, in the order of the docs."""
    return tuple((schema_at(path) or {}).get("properties", ()))


def is_secret(path: FieldPath) -> bool:
    """Return whether the field takes a reference to a secret, so that what stands there is never shown."""
    return bool((schema_at(path) or {}).get(REFERENCE))


def allowed_in_words(schema: dict[str, Any]) -> str:
    """Return what a resolved schema allows, as the end of the sentence "allowed: ..."."""
    words = _words(schema)
    return f"{words}, or null" if schema.get("x-nullable") else words


def _words(schema: dict[str, Any]) -> str:
    if FORM in schema:
        return str(schema[FORM])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "boolean":
        return "true or false"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        few = "at least one" if schema.get("minItems") else "any number"
        return f"a list, {few}, of {_words(resolved(schema['items']))}"
    if "properties" in schema:
        return "a mapping with the keys " + ", ".join(schema["properties"])
    if kind == "object":
        values = next(iter(schema.get("patternProperties", {}).values()), None) or schema["additionalProperties"]
        return f"a mapping of names to {_words(resolved(values))}"
    return "text"


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}" + (f", at most {high:g}" if high is not None else "")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" from {low}" if low is not None else ""
