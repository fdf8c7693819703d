"""Which stretches of a token stream see which: documents, and the beginnings that they share.

data in: segment boundaries and which segment continues which → out: for every segment, what its tokens may see.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch

NO_WINDOW = 1 << 30
"""The window of a model without one: larger than any document."""


class Documents(NamedTuple):
    """What decides which tokens see which; the fields are arguments of `attention`."""

    cu_seqlens: torch.Tensor
    parents: torch.Tensor
    window: int


class Scoring(NamedTuple):
    """What becomes of the product of a query and a key; the fields are arguments of `attention`."""

    scale: float | None = None
    softcap: float | None = None

    def scaled_by(self, head_width: int) -> float:
        """Return what the product is multiplied by."""
        return head_width**-0.5 if self.scale is None else self.scale


USUAL = Scoring()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the stream, and the stretches before it in its document."""

    ranges: tuple[tuple[int, int], ...]
    """What its tokens may see, as stream indices: the chain it continues, oldest first, then itself."""

    @property
    def start(self) -> int:
        """Its first token."""
        return self.ranges[-1][0]

    @property
    def end(self) -> int:
        """The token after its last."""
        return self.ranges[-1][1]

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.start

    @property
    def prefix_length(self) -> int:
        """Tokens of its document before it."""
        return sum(end - start for start, end in self.ranges[:-1])


def read_segments(cu_seqlens: torch.Tensor, parents: torch.Tensor | None) -> list[Segment]:
    """Read boundaries (S + 1,) and parents (S + 1,) as `attention` takes them; empty segments are left out."""
    ends = cu_seqlens.tolist()
    continued = [-1] * (len(ends) - 1) if parents is None else parents.tolist()[1:]
    chains: list[tuple[tuple[int, int], ...]] = []
    for (start, end), parent in zip(itertools.pairwise(ends), continued, strict=True):
        chains.append((*(chains[parent] if parent >= 0 else ()), (start, end)))
    return [Segment(chain) for chain in chains if chain[-1][1] > chain[-1][0]]
