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


def _line(cell: str, values: Sequence[object]) -> str:
    shown = (f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value) for value in values)
    cells = (f'<{cell} style="text-align:left">{html.escape(one)}</{cell}>' for one in shown)
    return f"<tr>{''.join(cells)}</tr>"
