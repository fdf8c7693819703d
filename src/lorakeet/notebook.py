"""How results show themselves in a notebook: small tables and texts as HTML, in the notebook's own colours.

data in: names and values → out: HTML that needs nothing else; every value is escaped. Whole pages are the reports' work.
"""

import html
from collections.abc import Iterable, Sequence

SUPERVISED = "background:#2e9e4f33;border-radius:2px"
"""Style of what is trained on; half transparent, so that it is readable on light and dark pages."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; floats with four digits."""
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def text(value: str, *, style: str = "") -> str:
    """Return text that keeps its line breaks."""
    return f'<span style="white-space:pre-wrap;{style}">{html.escape(value)}</span>'


def curve(points: Sequence[tuple[float, float]], *, width: int = 480, height: int = 120) -> str:
    """Return points as a line in a frame, an SVG with the smallest and largest values written beside it."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)

    def at(value: float, first: float, last: float, size: int) -> float:
        return size * (value - first) / (last - first) if last > first else size / 2

    path = " ".join(f"{at(x, xs[0], xs[-1], width):.1f},{height - at(y, low, high, height):.1f}" for x, y in points)
    marks = "".join(
        f'<text x="{width + 6}" y="{y}" font-size="11" fill="currentColor">{value:.3g}</text>'
        for value, y in ((high, 11), (low, height))
    )
    return (
        f'<svg viewBox="-2 -2 {width + 60} {height + 4}" width="{width + 60}" role="img" aria-label="curve">'
        f'<polyline points="{path}" fill="none" stroke="#2e9e4f" stroke-width="1.5"/>{marks}</svg>'
    )


def _line(cell: str, values: Sequence[object]) -> str:
    shown = (f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value) for value in values)
    cells = (f'<{cell} style="text-align:left">{html.escape(one)}</{cell}>' for one in shown)
    return f"<tr>{''.join(cells)}</tr>"
