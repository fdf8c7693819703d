"""What the losses of single rows show: which are hardest, and which rise while those of most rows fall.

data in: the rows of RUN/rows.jsonl → out: Ledger. A row that stays hard after several epochs, or gets harder, is often
wrong: a typing error, an answer to another question, a second answer to the same one.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NUM_SHOWN = 20
LEAST_RISE = 0.02
"""Nats a token by which a row's loss must rise to be named."""


@dataclass(frozen=True)
class RowLosses:
    """One training row's mean loss a supervised token, in nats, for each epoch that saw it."""

    place: str
    by_epoch: dict[int, float]
    tokens: int

    @property
    def last(self) -> float:
        """The loss in the last epoch that saw it."""
        return self.by_epoch[max(self.by_epoch)]

    @property
    def rise(self) -> float:
        """How much higher the last loss is than the first."""
        return self.last - self.by_epoch[min(self.by_epoch)]


@dataclass(frozen=True)
class Ledger:
    """The losses of all rows."""

    rows: list[RowLosses]

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> "Ledger":
        """Collect the lines of rows.jsonl by row; a line that came again counts as it came last."""
        losses: dict[str, dict[int, float]] = {}
        tokens: dict[str, int] = {}
        for line in lines:
            losses.setdefault(line["place"], {})[line["epoch"]] = line["loss"]
            tokens[line["place"]] = line.get("tokens", 0)
        return cls([RowLosses(place, by_epoch, tokens[place]) for place, by_epoch in losses.items()])

    @property
    def epochs(self) -> list[int]:
        """The epochs that saw any row."""
        return sorted({epoch for row in self.rows for epoch in row.by_epoch})

    def hardest(self, count: int = NUM_SHOWN) -> list[RowLosses]:
        """Return the rows with the highest last loss, highest first."""
        return sorted(self.rows, key=lambda row: -row.last)[:count]

    def rising(self, count: int = NUM_SHOWN) -> list[RowLosses]:
        """Return the rows whose loss rose from their first epoch to their last, where most rows' loss fell."""
        seen_again = [row for row in self.rows if len(row.by_epoch) > 1]
        if not seen_again or statistics.median(row.rise for row in seen_again) >= 0:
            return []
        return sorted((row for row in seen_again if row.rise > LEAST_RISE), key=lambda row: -row.rise)[:count]

    def median(self, epoch: int) -> float:
        """Return the median loss of an epoch's rows."""
        return statistics.median(row.by_epoch[epoch] for row in self.rows if epoch in row.by_epoch)

    def epochs_to_compare(self) -> list[tuple[int, Sequence[float]]]:
        """Return the losses of the first epoch and of the last one."""
        epochs = self.epochs
        chosen = epochs[:1] + epochs[-1:] if len(epochs) > 1 else epochs
        return [(epoch, [row.by_epoch[epoch] for row in self.rows if epoch in row.by_epoch]) for epoch in chosen]

    def find(self, places: Sequence[str]) -> list[RowLosses]:
        """Return the rows at `places`, as far as they are known."""
        known = {row.place: row for row in self.rows}
        return [known[place] for place in places if place in known]
