"""Validate custom resources against the definitions that their own project publishes: a script for `Program`.

Arguments: the directory of the definitions (CustomResourceDefinition files), then the document. A field that no
definition names is a fault: an API server would drop it in silence. Rules in CEL (x-kubernetes-validations) need an API
server and are not judged. Status 0: every object holds. 1: one does not, or no definition is known for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

Schema = dict[str, Any]


def main() -> int:
    """Judge the document that the second argument names."""
    definitions, document = Path(sys.argv[1]), Path(sys.argv[2])
    known = {key: schema for path in sorted(definitions.glob("*.yaml")) for key, schema in _schemas(path)}
    faults = [
        f"{found.get('kind')} {found.get('metadata', {}).get('name')}: {fault}"
        for found in yaml.safe_load_all(document.read_text(encoding="utf-8"))
        for fault in _faults(found, known.get((found.get("apiVersion"), found.get("kind"))))
    ]
    print("\n".join(faults))
    return 1 if faults else 0


def _schemas(path: Path) -> list[tuple[tuple[str, str], Schema]]:
    """Return (apiVersion, kind) and the strict schema of each version that a file's definitions serve."""
    specs = [
        found["spec"]
        for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("kind") == "CustomResourceDefinition"
    ]
    return [
        ((f"{spec['group']}/{each['name']}", spec["names"]["kind"]), _strict(each["schema"]["openAPIV3Schema"]))
        for spec in specs
        for each in spec["versions"]
        if each["served"]
    ]


def _strict(schema: Any) -> Any:
    """Return a schema that takes no field beyond those it names; integers written as text where it says so."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def _faults(found: Schema, schema: Schema | None) -> list[str]:
    if schema is None:
        return [f"there is no definition of it in {found.get('apiVersion')}"]
    errors = Draft202012Validator(schema).iter_errors(found)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


if __name__ == "__main__":
    sys.exit(main())
