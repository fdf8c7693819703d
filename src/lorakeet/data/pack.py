"""Examples become one flat token stream; rows of max_length are filled best-fit.

data in: Examples → out: PackedBatch (tensors) or groups of example indices. Documents never see each other: their
borders are cu_seqlens, and positions restart at each. No row is padded to another's length; at most the whole stream
is filled up to one of a few sizes. This file decides no order (loader.py).

Dimensions: T tokens of the batch, D documents, S supervised tokens.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorakeet.data.conversation import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch as the model takes it."""

    input_ids_T: "torch.Tensor"
    """int64; the documents one after the other."""
    position_ids_T: "torch.Tensor"
    """int64; restart at 0 with every document."""
    cu_seqlens: "torch.Tensor"
    """int32 [D+1]; document d is tokens cu_seqlens[d]:cu_seqlens[d+1]."""
    supervised_S: "torch.Tensor"
    """int64; indices of the hidden rows whose next token is a target."""
    targets_S: "torch.Tensor"
    """int64; those next tokens, or NO_TARGET in rows that only fill up."""
    owners_S: "torch.Tensor"
    """int64; for each target the example it belongs to, by its number in the batch; 0 in rows that only fill up."""
    parents: "torch.Tensor | None"
    """int32 [D+1]; entry d + 1 is the document that document d continues, or -1; None if none continues another."""
    num_supervised_tokens: int
    num_tokens: int
    """Tokens of the examples, each counted in full however much they share."""
    num_examples: int

    def to(self, device: "torch.device") -> "PackedBatch":
        """Move the batch to a device."""
        if self.input_ids_T.device == device:
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids_T", "position_ids_T", "cu_seqlens", "supervised_S", "targets_S", "owners_S", "parents")
        }
        return replace(self, **moved)


NO_TARGET = -100
"""PyTorch's usual mark of a row whose loss does not count."""


def pack(examples: Sequence[Example], *, share_prefixes: bool = False, fill_up: bool = False) -> PackedBatch:
    """Put examples behind each other into one flat stream.

    With share_prefixes, tokens that several examples begin with are in the stream once, as a segment of their own
    which the others continue. With fill_up, a document of no meaning at the end brings tokens and supervised rows to
    sizes that recur. Every example keeps its targets.
    """
    import torch

    stream = _Stream({id(example): i for i, example in enumerate(examples)})
    if share_prefixes:
        stream.add_sharing(list(examples), depth=0, parent=-1)
    else:
        for example in examples:
            stream.add([example], 0, len(example.input_ids), parent=-1)
    num_supervised_tokens = len(stream.rows)
    if fill_up:
        stream.fill_up()
    return PackedBatch(
        input_ids_T=torch.tensor(stream.ids, dtype=torch.int64),
        position_ids_T=torch.tensor(stream.positions, dtype=torch.int64),
        cu_seqlens=torch.tensor(stream.borders, dtype=torch.int32),
        supervised_S=torch.tensor(stream.rows, dtype=torch.int64),
        targets_S=torch.tensor(stream.targets, dtype=torch.int64),
        owners_S=torch.tensor(stream.owners, dtype=torch.int64),
        parents=torch.tensor([-1, *stream.parents], dtype=torch.int32),
        num_supervised_tokens=num_supervised_tokens,
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_examples=len(examples),
    )


def recurring_size(n: int) -> int:
    """Round `n` up to one of 16 sizes between powers of two: by 2.2 % on average."""
    step = 1 << max(0, n.bit_length() - 5)
    return -(-n // step) * step


LEAST_SHARED = 16
"""Tokens that a shared beginning must spare, over all that share it, to be worth a segment of its own."""


class _Stream:
    """A token stream in the making."""

    def __init__(self, numbers: dict[int, int]) -> None:
        """`numbers` are the examples' places in the batch, by id()."""
        self.numbers = numbers
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.borders = [0]
        self.parents: list[int] = []
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.owners: list[int] = []

    def add(self, examples: Sequence[Example], start: int, end: int, parent: int) -> int:
        """Append tokens start:end, which all `examples` have in common; return the segment's index.

        A target that several examples share counts once for each. The row that predicts the segment's
        first token is the last one of its parent.
        """
        offset = len(self.ids) - start
        self.ids += examples[0].input_ids[start:end]
        self.positions += range(start, end)
        before = self.borders[parent + 1] - 1 if parent >= 0 else -1
        for example in examples:
            for first, last in example.spans:
                assert 0 < first < last <= len(example.input_ids), (example.place, first, last)
                for i in range(max(first, start), min(last, end)):
                    self.rows.append(before if i == start else offset + i - 1)
                    self.targets.append(example.input_ids[i])
                    self.owners.append(self.numbers[id(example)])
        self.borders.append(len(self.ids))
        self.parents.append(parent)
        return len(self.parents) - 1

    def add_sharing(self, examples: list[Example], depth: int, parent: int) -> None:
        """Append examples that agree up to `depth`, sharing what more of them agree on."""
        while examples:
            members, end = _sharing_group(examples, depth)
            group = [example for i, example in enumerate(examples) if i in members]
            examples = [example for i, example in enumerate(examples) if i not in members]
            segment = self.add(group, depth, end, parent)
            # An example that ends with the segment is complete.
            self.add_sharing([example for example in group if len(example.input_ids) > end], end, segment)

    def fill_up(self) -> None:
        """Append a document that no example attends to, and rows at its end that have no target."""
        if missing := recurring_size(len(self.ids)) - len(self.ids):
            self.add([Example([0] * missing, (), "filling")], 0, missing, parent=-1)
        missing = recurring_size(len(self.rows)) - len(self.rows)
        self.rows += [len(self.ids) - 1] * missing
        self.targets += [NO_TARGET] * missing
        self.owners += [0] * missing


def _sharing_group(examples: Sequence[Example], depth: int) -> tuple[set[int], int]:
    """Find the examples that share most with the first one from `depth` on, and where their common part ends.

    All examples agree up to `depth` already. Sharing up to a later point takes fewer examples along. With lengths of
    agreement with the first example sorted downwards, l₀ ≥ l₁ ≥ ..., sharing up to l_k takes examples 0 to k along and
    computes l_k - depth tokens once instead of k + 1 times: it spares (l_k - depth) · k of them. The best k wins.
    For example, three rows with a common system prompt of 100 tokens, two of which ask the same question of 20 more:
    stopping behind the question spares 120 · 1, stopping behind the system prompt 100 · 2, so all three share it, and
    the two share their question in the next call, one level deeper.

    Returns: the examples' places in the list, and the end of the common part; the first example alone, with its whole
    length, if nothing worth a segment is shared.
    """
    common = sorted(((_common_length(examples[0], other), i) for i, other in enumerate(examples)), reverse=True)
    spared = [(length - depth) * rank for rank, (length, _) in enumerate(common)]
    rank = max(range(len(common)), key=spared.__getitem__)
    if spared[rank] < LEAST_SHARED:
        return {0}, len(examples[0].input_ids)
    return {i for _, i in common[: rank + 1]}, common[rank][0]


def _common_length(one: Example, other: Example) -> int:
    """Count the tokens that both begin with."""
    if one is other:
        return len(one.input_ids)
    length = min(len(one.input_ids), len(other.input_ids))
    for i in range(length):
        if one.input_ids[i] != other.input_ids[i]:
            return i
    return length


@dataclass(frozen=True, slots=True)
class PackingStats:
    """How full the rows are."""

    num_rows: int
    num_tokens: int
    max_length: int

    @property
    def waste(self) -> float:
        """Share of the rows' room that holds no token."""
        room = self.num_rows * self.max_length
        return 1 - self.num_tokens / room if room else 0.0


def fill_rows(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Group examples into rows of at most max_length tokens: longest first, each into the fullest row with room.

    Returns lists of indices into `lengths`. The result depends on nothing but the arguments. Best-fit decreasing needs
    at most 11/9 of the fewest rows possible, plus 4. Source: Johnson et al. 1974, SIAM J. Comput. 3(4).
    """
    assert max(lengths, default=0) <= max_length
    rows: list[list[int]] = []
    rooms: list[int] = []  # the different sizes of room that rows have left, sorted
    owners: dict[int, list[int]] = {}  # for each size, the rows that have it
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, lengths[index])
        if at == len(rooms):
            room, owner = max_length, len(rows)
            rows.append([])
        else:
            room = rooms[at]
            owner = owners[room].pop()
            if not owners[room]:
                del owners[room], rooms[at]
        rows[owner].append(index)
        left = room - lengths[index]
        if left not in owners:
            owners[left] = []
            bisect.insort(rooms, left)
        owners[left].append(owner)
    return rows


def packing_stats(lengths: Sequence[int], rows: Sequence[Sequence[int]], max_length: int) -> PackingStats:
    """Count how much of the rows is used."""
    return PackingStats(len(rows), sum(lengths[i] for row in rows for i in row), max_length)
