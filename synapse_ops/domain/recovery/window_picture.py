"""The restorable window as a picture: one row for each kind of backup, from before the end of its retention to now.

It is SVG inside Markdown. Dagster's page shows Markdown in place while it is under 1,000 characters, and hides the rest
behind a click: so marks that touch become one, and every sort of mark is one path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

LABEL, MARK, ROW = 64, 2, 26
WIDTH = LABEL + 312 + MARK  # ten a day where 30 days are kept; a value on a page 1,400 wide has room for it
MARGIN = 1.04
_BAR, _TICK = 6, 14  # how high a bar and a mark are

Moment = tuple[datetime, bool]
Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One kind of backup. window: its retention. backups: (the moment that one restores, whether it is proven).

    spans: between which every moment can be restored, by proven base backups and unbroken WAL; ascending, apart.
    """

    label: str
    window: timedelta
    backups: Sequence[Moment] = ()
    spans: Sequence[Span] = ()


def draw_window(rows: Sequence[PictureRow], now: datetime) -> str:
    """Return the picture as SVG. What lies further back than `MARGIN` of the longest window is left out."""
    shown = max((row.window for row in rows), default=timedelta(days=1)) * MARGIN

    def x(moment: datetime) -> int:
        part = 1 - (now - moment) / shown
        return LABEL + round(min(1.0, max(0.0, part)) * (WIDTH - LABEL - MARK))

    oldest = now - shown

    def spans(row: PictureRow) -> Iterator[tuple[int, int]]:
        return ((x(start), max(x(start) + 1, x(stop))) for start, stop in row.spans if stop > oldest)

    def marks(row: PictureRow, *, proven: bool) -> Iterator[tuple[int, int]]:
        return ((x(at), x(at) + MARK) for at, is_proven in row.backups if is_proven == proven and at > oldest)

    paths = [
        _path(rows, spans, "#9d9", _BAR),
        _path(rows, lambda row: marks(row, proven=True), "green", _TICK),
        _path(rows, lambda row: marks(row, proven=False), "orange", _TICK),
    ]
    ends = (f"M{x(now - row.window)} {ROW * number}v{ROW}" for number, row in enumerate(rows))
    labels = (f"<text y='{_y(number) + 4}'>{row.label}</text>" for number, row in enumerate(rows))
    drawn = f"{''.join(labels)}{''.join(paths)}<path stroke='gray' d='{''.join(ends)}'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{ROW * len(rows)}'>{drawn}</svg>"


def as_markdown(svg: str, name: str = "window") -> str:
    """Return SVG as an image in Markdown. name: what is read where no image is shown."""
    encoded = svg.replace("%", "%25").replace("#", "%23").replace("<", "%3C").replace(">", "%3E")
    return f"![{name}](<data:image/svg+xml,{encoded}>)"


def _y(number: int) -> int:
    return ROW * number + ROW // 2


def _path(
    rows: Sequence[PictureRow], pieces_of: Callable[[PictureRow], Iterable[tuple[int, int]]], color: str, width: int
) -> str:
    """Return the pieces of all rows as one path; what touches within a row is one piece."""
    drawn = ""
    for number, row in enumerate(rows):
        at: int | None = None
        for start, stop in _merged(pieces_of(row)):
            drawn += f"M{start} {_y(number)}" if at is None else f"m{start - at} 0"
            drawn += f"h{stop - start}"
            at = stop
    return f"<path stroke='{color}' stroke-width='{width}' d='{drawn}'/>" if drawn else ""


def _merged(pieces: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    held: tuple[int, int] | None = None
    for start, stop in sorted(pieces):
        if held is not None and start <= held[1]:
            held = (held[0], max(held[1], stop))
            continue
        if held is not None:
            yield held
        held = (start, stop)
    if held is not None:
        yield held
