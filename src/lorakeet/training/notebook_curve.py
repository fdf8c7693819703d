"""The loss of a run as a curve in the notebook cell that trains it.

data in: rows of the run → out: one displayed object, a bar and a curve, drawn anew as they move. Nothing elsewhere.
"""

import sys
import time
from typing import Any

from lorakeet import notebook
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import EvaluationRow, Row, StepRow

_SECONDS_BETWEEN = 0.5
_MOST_POINTS = 400
"""More would not be seen, and every redrawing sends all of them."""


def is_in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which can show pictures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookCurve(Reporter):
    """A bar of the steps, and the loss against the step."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._points: list[tuple[float, float]] = []
        self._held_out = ""
        self._row: StepRow | None = None
        self._drawn_at = 0.0
        self._display: Any = None

    def step(self, row: StepRow) -> None:
        """Move the bar, now and then."""
        self._row = row
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN:
            self._draw(row)

    def log(self, row: Row) -> None:
        """Add a point to the curve, which is drawn with the next step or at the end."""
        match row:
            case StepRow():
                self._row = row
                self._points.append((row.step, row.loss))
                if len(self._points) > _MOST_POINTS:
                    self._points = self._points[::2]
            case EvaluationRow():
                self._held_out = f", held-out loss {row.eval_loss:.4f}"

    def close(self) -> None:
        """Draw what came last."""
        if self._row is not None:
            self._draw(self._row)

    def _draw(self, row: StepRow) -> None:
        from IPython.display import HTML, display

        bar = f'<progress max="{self._total}" value="{row.step}"></progress> '
        line = f"step {row.step} of {self._total}, loss {row.loss:.4f}, {row.tokens_per_second:,.0f} tokens/s{self._held_out}"
        shown = HTML(bar + notebook.text(line) + "<br>" + (notebook.curve(self._points) if self._points else ""))
        if self._display is None:
            self._display = display(shown, display_id=True)
        else:
            self._display.update(shown)
        self._drawn_at = time.monotonic()
