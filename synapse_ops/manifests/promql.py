"""PromQL as text that we write, and as a tree that a parser of another project reads back.

The parser is imported when it is used: rendering needs no more than text.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_duration

_LEAST_RANGE = timedelta(minutes=5)
_SAMPLES_IN_RANGE = 4  # a rate wants two; one scrape may be late and one lost


def range_of(spec: Spec) -> str:
    """Return the range of rates: five minutes, more where so few samples would fall into it."""
    return format_duration(rate_range(spec))


def rate_range(spec: Spec) -> timedelta:
    return max(_LEAST_RANGE, spec.prometheus.scrape_interval * _SAMPLES_IN_RANGE)


def number(value: Decimal | int) -> str:
    """Return a number without exponent or useless zeros: what a person wrote, in base units."""
    text = f"{Decimal(value):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: timedelta) -> str:
    return number(Decimal(value // timedelta(milliseconds=1)) / 1000)


def quoted(text: str) -> str:
    """Return a PromQL string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def parse(expr: str) -> Any:
    """Return the tree. Raises ValueError with the parser's own words and the expression."""
    import promql_parser

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
    import promql_parser

    if isinstance(tree, promql_parser.VectorSelector):
        yield tree
        return
    for name in _BELOW:
        below = getattr(tree, name, None)
        if isinstance(below, promql_parser.Expr):
            yield from _vectors(below)
    for argument in getattr(tree, "args", None) or ():
        yield from _vectors(argument)
