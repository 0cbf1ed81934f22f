"""Judges a Logstash pipeline: its grammar by a parser of another project, its plugins and options by our own list.

The parser knows no plugin: a misspelt option would pass it and stop Logstash at its start. The list holds what we
render; an option is added here with a look into the plugin's own page (elastic.co, "Logstash Reference").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

_COMMON = frozenset(["id", "add_field", "add_tag", "remove_field", "remove_tag"])
ALLOWED: Mapping[str, Mapping[str, frozenset[str]]] = {
    "input": {
        "beats": frozenset(
            ["port", "ssl_enabled", "ssl_certificate", "ssl_key", "ssl_supported_protocols", "id", "host"]
        ),
    },
    "filter": {
        "json": _COMMON | {"source", "target", "skip_on_invalid_json"},
        "date": _COMMON | {"match", "target"},
        "mutate": _COMMON | {"rename", "lowercase", "replace"},
        "fingerprint": _COMMON | {"source", "concatenate_sources", "method", "target"},
    },
    "output": {
        "elasticsearch": frozenset(
            {
                "id",
                "action",
                "api_key",
                "document_id",
                "hosts",
                "ilm_enabled",
                "index",
                "manage_template",
                "ssl_enabled",
                "ssl_verification_mode",
            }
        ),
    },
}


@lru_cache(maxsize=64)
def pipeline_faults(text: str) -> tuple[str, ...]:
    """Return what is wrong with a pipeline; nothing means that Logstash will take it."""
    return tuple(_pipeline_faults(text))


def _pipeline_faults(text: str) -> Iterator[str]:
    from logstash_pipeline_parser import Pipeline
    from logstash_pipeline_parser.tree import ParseError

    try:
        sections = Pipeline(text).parse()
    except ParseError as fault:
        yield f"no pipeline: {' '.join(str(fault).split())[:300]}"
        return
    names = [section[0] for section in sections]
    for wanted in ("input", "output"):
        if wanted not in names:
            yield f"no {wanted} section"
    for name, body in sections:
        yield from _section_faults(str(name), body)


def _section_faults(section: str, body: Any) -> Iterator[str]:
    known = ALLOWED.get(section)
    if known is None:
        yield f'unknown section "{section}"'
        return
    for name, inside in body:
        if str(name).split()[0] in ("if", "else"):
            for branch in inside[-1]:
                yield from _section_faults(section, branch)
            continue
        options = known.get(str(name))
        if options is None:
            yield f'{section}: unknown plugin "{name}"; known: {", ".join(known)}'
            continue
        for option in (str(pair[0]) for pair in inside):
            if option not in options:
                yield f'{section} {name}: unknown option "{option}"; known: {", ".join(sorted(options))}'
