"""PromQL as a tree, read by a parser of another project."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser

from synapse_ops.manifests.monitoring.promql import quoted


def parse(expr: str) -> Any:
    """Return the tree. Raises ValueError with the parser's own words and the expression."""
    try:
        return promql_parser.parse(expr)
    except ValueError as fault:
        raise ValueError(f"{fault}: {expr}") from fault


def selectors(expr: str) -> tuple[tuple[str, str], ...]:
    """Return (metric, selector as text) of each vector that an expression reads, each once, in order of appearance.

    A selector of a range or with an offset is given as an instant vector: it asks for the same series.
    """
    found: dict[tuple[str, str], None] = {}
    for tree in _vectors(parse(expr)):
        matchers = sorted(f"{match.name}{_OPS[str(match.op)]}{quoted(match.value)}" for match in tree.matchers.matchers)
        inside = f"{{{','.join(matchers)}}}" if matchers else ""
        found[tree.name or "", f"{tree.name or ''}{inside}"] = None
    return tuple(found)


_OPS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
_BELOW = ("expr", "lhs", "rhs", "param", "vector_selector")


def _vectors(tree: Any) -> Iterator[Any]:
    if isinstance(tree, promql_parser.VectorSelector):
        yield tree
        return
    for name in _BELOW:
        below = getattr(tree, name, None)
        if isinstance(below, promql_parser.Expr):
            yield from _vectors(below)
    for argument in getattr(tree, "args", None) or ():
        yield from _vectors(argument)
