"""A bar chart as SVG text: groups of bars, one bar a system. Draws nothing else."""

from collections.abc import Mapping
from html import escape

COLOURS = ("#d9480f", "#868e96", "#1c7ed6", "#74c0fc", "#2b8a3e")
_LEFT, _TOP, _PLOT, _BAR, _GAP = 70, 70, 260, 26, 34


def bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Draw {group: {bar: value}}; every group has the same bars, in the same order."""
    names = list(next(iter(groups.values())))
    top = max(value for bars in groups.values() for value in bars.values())
    group_width = len(names) * _BAR + _GAP
    width, height = max(_LEFT + len(groups) * group_width + 20, 640), _TOP + _PLOT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 24, title, size=16),
    ]
    x = _LEFT
    for colour, name in zip(COLOURS, names, strict=False):
        parts += [f'<rect x="{x}" y="38" width="12" height="12" fill="{colour}"/>', _text(x + 17, 48, name)]
        x += 30 + 7 * len(name)
    parts.append(_text(8, _TOP - 4, unit))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _TOP + _PLOT * (1 - share)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width - 10}" y2="{y:.1f}" stroke="#dee2e6"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{top * share:,.0f}", anchor="end"))
    for i, (group, bars) in enumerate(groups.items()):
        left = _LEFT + i * group_width + _GAP / 2
        for j, value in enumerate(bars.values()):
            tall, at = _PLOT * value / top, left + j * _BAR
            parts.append(
                f'<rect x="{at:.1f}" y="{_TOP + _PLOT - tall:.1f}" width="{_BAR - 3}" height="{tall:.1f}" '
                f'fill="{COLOURS[j % len(COLOURS)]}"/>'
            )
            parts.append(_text(at + _BAR / 2 - 1, _TOP + _PLOT - tall - 4, f"{value:,.0f}", anchor="middle", size=9))
        for line, words in enumerate(group.split("\n")):
            parts.append(_text(left + len(names) * _BAR / 2, _TOP + _PLOT + 18 + 14 * line, words, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
