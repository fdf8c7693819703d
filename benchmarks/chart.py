"""A bar chart as SVG text: groups of bars, one bar a system, readable on light and dark pages. Draws nothing else."""

import math
from collections.abc import Mapping
from html import escape

COLOURS = ("#d9480f", "#868e96", "#1c7ed6", "#74c0fc", "#2b8a3e")
_STYLE = """text { fill: #212529 } .page { fill: #ffffff } line { stroke: #dee2e6 }
@media (prefers-color-scheme: dark) { text { fill: #e9ecef } .page { fill: #16181c } line { stroke: #495057 } }"""
_LEFT, _PLOT, _BAR, _GAP, _LEGEND_LINE = 64, 260, 30, 40, 20
_MOST_TICKS = 6


def bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Draw {group: {bar: value}}; every group has the same bars, in the same order, and may have a name of several lines."""
    names = list(next(iter(groups.values())))
    step = _tick_step(max(value for bars in groups.values() for value in bars.values()))
    top = step * math.ceil(max(value for bars in groups.values() for value in bars.values()) / step)
    group_width = max(len(names) * _BAR, 7 * max(len(line) for group in groups for line in group.split("\n"))) + _GAP
    width, above = _LEFT + len(groups) * group_width + 20, 62 + _LEGEND_LINE * len(names)
    height = above + _PLOT + 16 * (1 + max(group.count("\n") + 1 for group in groups))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>',
        f'<rect class="page" width="{width}" height="{height}"/>',
        _text(16, 26, title, size=17),
    ]
    for i, name in enumerate(names):
        y = 40 + _LEGEND_LINE * i
        parts += [f'<rect x="16" y="{y}" width="12" height="12" fill="{COLOURS[i % len(COLOURS)]}"/>', _text(34, y + 11, name)]
    parts.append(_text(16, above - 12, unit))
    for tick in range(round(top / step) + 1):
        y = above + _PLOT * (1 - tick * step / top)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width - 10}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick * step:,g}", anchor="end"))
    for i, (group, bars) in enumerate(groups.items()):
        middle = _LEFT + (i + 0.5) * group_width
        left = middle - len(names) * _BAR / 2
        for j, value in enumerate(bars.values()):
            tall, at = _PLOT * value / top, left + j * _BAR
            parts.append(
                f'<rect x="{at:.1f}" y="{above + _PLOT - tall:.1f}" width="{_BAR - 3}" height="{tall:.1f}" '
                f'fill="{COLOURS[j % len(COLOURS)]}"/>'
            )
            parts.append(_text(at + _BAR / 2 - 1, above + _PLOT - tall - 4, f"{value:,.0f}", anchor="middle", size=11))
        for line, words in enumerate(group.split("\n")):
            parts.append(_text(middle, above + _PLOT + 20 + 16 * line, words, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _tick_step(largest: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that needs no more than six ticks to `largest`."""
    power = 10.0 ** math.floor(math.log10(largest / _MOST_TICKS))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if largest <= power * factor * _MOST_TICKS)


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
