"""How a check report and its examples look: on a terminal with or without colour.

data in: CheckReport, rows to show → out: text. Nothing is computed here.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from lorakeet import notebook
from lorakeet.checking.report import CheckReport, Shown
from lorakeet.data.conversation import Example
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.formatting import count, duration, size

if TYPE_CHECKING:
    from rich.text import Text

Look = Literal["context", "supervised", "control", "supervised-control"]
_STYLES: dict[Look, str] = {
    "context": "dim",
    "supervised": "bold green",
    "control": "blue",
    "supervised-control": "bold magenta",
}
_MARKS: dict[Look, tuple[str, str]] = {
    "context": ("", ""),
    "supervised": ("«", "»"),
    "control": ("{", "}"),
    "supervised-control": ("«{", "}»"),
}
_NAMES: dict[Look, str] = {
    "supervised": "trained on",
    "context": "context",
    "control": "control token",
    "supervised-control": "control token, trained on",
}


def stretches(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[Look, str]]:
    """Cut an example into stretches of one look, each with its text."""
    supervised = bytearray(len(example.input_ids))
    for start, end in example.spans:
        supervised[start:end] = b"\1" * (end - start)
    runs: list[tuple[Look, list[int]]] = []
    for index, token in enumerate(example.input_ids):
        control = token in tokenizer.control_ids
        look: Look = "control" if control else "context"
        if supervised[index]:
            look = "supervised-control" if control else "supervised"
        if runs and runs[-1][0] == look and not control:
            runs[-1][1].append(token)
        else:
            runs.append((look, [token]))
    texts = tokenizer.decode_inside([ids for _, ids in runs])
    yield from ((look, text) for (look, _), text in zip(runs, texts, strict=True))


def example_text(shown: Shown, tokenizer: Tokenizer, *, colour: bool) -> "Text":
    """Draw one row: by colours, or by marks if there are none."""
    from rich.text import Text

    text = Text()
    for look, part in stretches(shown.example, tokenizer):
        before, after = ("", "") if colour else _MARKS[look]
        text.append(before + _visible(part) + after, _STYLES[look] if colour else "")
    return text


def legend(*, colour: bool) -> "Text":
    """Explain the colours or the marks."""
    from rich.text import Text

    text = Text()
    for look, name in _NAMES.items():
        text.append(", " if text else "")
        before, after = ("", "") if colour else _MARKS[look]
        text.append(before + name + after, _STYLES[look] if colour else "")
    return text


def _visible(text: str) -> str:
    """Replace what would move the cursor or hide text; line breaks and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def report_lines(report: CheckReport) -> list[str]:
    """Return the figures as text, one fact a line."""
    lines = [
        f"{report.num_usable:,} of {report.num_rows:,} rows usable, every one proven; template {report.template}",
        f"{report.num_tokens:,} tokens, {report.num_supervised_tokens:,} trained on "
        f"({report.num_supervised_tokens / max(report.num_tokens, 1):.0%}; learn={report.learn})",
    ]
    lines += report.lines()
    lines += _length_lines(report)
    lines.append(f"suggested --max-length {report.suggested_max_length} ({report.packing_waste:.1%} waste when packed)")
    for limit in report.truncation_cost:
        if limit["rows"]:
            too_long = count(limit["rows"], "row")
            lines.append(f"--max-length {limit['max_length']}: {too_long} too long, {limit['tokens']:,} tokens")
    lines += _duplicate_lines(report)
    lines.append("languages: " + ", ".join(f"{name} {rows:,}" for name, rows in list(report.languages.items())[:6]))
    lines.append("scripts: " + ", ".join(f"{name} {part:.1%}" for name, part in list(report.scripts.items())[:6]))
    lines.append("longest: " + ", ".join(f"{place} ({length:,})" for place, length in report.longest_rows))
    lines.append("shortest: " + ", ".join(f"{place} ({length:,})" for place, length in report.shortest_rows))
    if report.cost is not None:
        steps, speed = count(int(report.cost["steps"]), "step"), report.cost["tokens_per_second"]
        lines.append(
            f"this run on this machine, predicted from two steps: {steps} in {duration(report.cost['seconds'])} "
            f"({speed:,.0f} tokens/s), {size(report.cost['peak_memory_bytes'])} at the peak"
        )
    lines += [f"warning: {warning}" for warning in report.warnings]
    return lines


def _length_lines(report: CheckReport) -> list[str]:
    lengths = report.lengths
    if lengths is None:
        return []
    lines = [
        f"lengths: {lengths.shortest} to {lengths.longest} tokens, median {lengths.median}, "
        f"mean {lengths.mean:.1f}, p95 {lengths.p95}, p99 {lengths.p99}"
    ]
    most = max(rows for _, _, rows in lengths.histogram)
    for low, high, rows in lengths.histogram:
        bar = "█" * round(40 * rows / most) if rows else ""
        lines.append(f"  {low:>6}–{high:<6} {rows:>8,} {bar}".rstrip())
    return lines


def notebook_html(report: CheckReport, shown: Sequence[Shown], tokenizer: Tokenizer) -> str:
    """Return the figures and the rows, what is trained on in colour, for a notebook."""
    rows = []
    for one in shown:
        parts = (
            notebook.text(_visible(text), style=notebook.SUPERVISED if look.startswith("supervised") else "opacity:.75")
            for look, text in stretches(one.example, tokenizer)
        )
        rows.append(f"<p>{''.join(parts)}</p>")
    return notebook.text("\n".join(report_lines(report))) + "".join(rows)


def _duplicate_lines(report: CheckReport) -> list[str]:
    lines = []
    if report.num_near_duplicates:
        shown = "; ".join(f"{place} is like {earlier}" for place, earlier in report.near_duplicates[:3])
        lines.append(f"near duplicates: {report.num_near_duplicates:,}; {shown}")
    if report.num_conflicting:
        shown = "; ".join(", ".join(group) for group in report.conflicts[:3])
        lines.append(f"one prompt, different answers: {count(report.num_conflicting, 'row')}; {shown}")
    return lines
