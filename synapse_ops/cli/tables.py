"""How commands print tables, sizes and ages: on stdout, readable on a terminal and whole in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from synapse_ops.domain.printable_text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from synapse_ops.domain.backup.record import Fact

PIPE_WIDTH = 200  # a pipe has no width; a table folded at 80 cannot be searched with grep


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table on stdout. columns: a leading `>` puts the numbers of a column to the right."""
    console().print(table_of(columns, rows, title=title))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str = "") -> Table:
    """Return a table as `show_table` prints it; a cell may be styled text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title), style="table.title") if title else None, title_justify="left", header_style="bold"
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:  # Text: a name with [brackets] is not markup
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell, keep="\n")) for cell in row))
    return table


def console() -> Console:
    """Return stdout: as wide as the terminal, or wide enough for grep in a pipe."""
    from rich.console import Console

    found = Console(soft_wrap=False)
    return found if found.is_terminal else Console(width=PIPE_WIDTH)


def format_bytes(size: int) -> str:
    """Return a size for people: `17.6 MiB`."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def format_moment(moment: datetime | None) -> str:
    """Return a time that can be pasted into a command: ISO 8601, UTC, whole seconds; a dash for none."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else "-"


def format_fact(name: str, value: Fact) -> str:
    """Return one fact as `label value`-ready text by the unit that its name ends in: `_bytes`, `_s`, `_ratio`."""
    if isinstance(value, datetime):
        return format_moment(value)
    if isinstance(value, str):
        return value
    if name.endswith("_bytes_per_s"):
        return f"{format_bytes(int(value))}/s"
    if name.endswith("_bytes"):
        return format_bytes(int(value))
    if name.endswith("_s"):
        return f"{value:.1f} s"
    if name.endswith("_ratio"):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def fact_rows(facts: Mapping[str, Fact]) -> list[tuple[str, str]]:
    """Return facts as rows of a label, in words and without its unit, and a text."""
    rows = []
    for name, value in facts.items():
        label = name
        for suffix in ("_bytes_per_s", "_bytes", "_s"):
            label = label.removesuffix(suffix) if label == name else label
        rows.append((f"{label} rate" if name.endswith("_per_s") else label, format_fact(name, value)))
    return [(label.replace("_", " "), text) for label, text in rows]


def fact_lines(facts: Mapping[str, Fact]) -> Iterator[str]:
    """Yield facts as indented lines with their texts below one another."""
    rows = fact_rows(facts)
    width = max((len(label) for label, _ in rows), default=0)
    for label, text in rows:
        yield f"  {label:{width}}  {text}"
