"""The loss of a run as a curve in the notebook cell that trains it.

data in: logged rows → out: one displayed object, drawn anew at each row. Outside of a notebook there is none.
"""

import sys
from typing import Any

from lorakeet import notebook
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import EvaluationRow, Row, StepRow


def is_in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which can show pictures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookCurve(Reporter):
    """Draws the loss against the step, and says what the last row did."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._points: list[tuple[float, float]] = []
        self._held_out = ""
        self._display: Any = None

    def log(self, row: Row) -> None:
        """Draw the curve with one more point."""
        match row:
            case StepRow():
                self._points.append((row.step, row.loss))
                self._draw(f"step {row.step} of {self._total}, loss {row.loss:.4f}, {row.tokens_per_second:,.0f} tokens/s")
            case EvaluationRow():
                self._held_out = f", held-out loss {row.eval_loss:.4f}"

    def _draw(self, line: str) -> None:
        from IPython.display import HTML, display

        shown = HTML(f"{notebook.curve(self._points)}<br>{notebook.text(line + self._held_out)}")
        if self._display is None:
            self._display = display(shown, display_id=True)
        else:
            self._display.update(shown)
