"""Is a difference between two models real, or would other rows have shown another one?

data in: two scores of each row → out: an interval of their mean difference, by the paired bootstrap: rows are drawn anew
with replacement, many times, and the middle 95 % of the means are kept. Source: Koehn 2004, aclanthology.org/W04-3250.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A mean difference and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare two models' scores of the same rows; the same scores give the same interval."""
    differences = numpy.subtract(ours, theirs)
    rng = numpy.random.default_rng(0)
    count = len(differences)
    means = [differences[rng.integers(count, size=count)].mean() for _ in range(RESAMPLES)]
    low, high = numpy.quantile(means, [0.025, 0.975])
    return Difference(float(differences.mean()), float(low), float(high))
