"""Examples become one flat token stream; rows of max_length are filled best-fit.

data in: Examples → out: PackedBatch (tensors) or groups of example indices. Documents never see each other: their
borders are cu_seqlens, and positions restart at each. Nothing is padded. This file decides no order (loader.py).

Dimensions: T tokens of the batch, D documents, S supervised tokens.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
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
    """int64; those next tokens."""
    num_supervised_tokens: int

    def to(self, device: "torch.device") -> "PackedBatch":
        """Move the batch to a device."""
        if self.input_ids_T.device == device:
            return self
        return PackedBatch(
            input_ids_T=self.input_ids_T.to(device, non_blocking=True),
            position_ids_T=self.position_ids_T.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            supervised_S=self.supervised_S.to(device, non_blocking=True),
            targets_S=self.targets_S.to(device, non_blocking=True),
            num_supervised_tokens=self.num_supervised_tokens,
        )


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Put examples behind each other into one flat stream."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    borders: list[int] = [0]
    rows: list[int] = []
    targets: list[int] = []
    for example in examples:
        offset = len(ids)
        ids += example.input_ids
        positions += range(len(example.input_ids))
        for start, end in example.spans:
            assert 0 < start < end <= len(example.input_ids), (example.place, start, end)
            rows += range(offset + start - 1, offset + end - 1)
            targets += example.input_ids[start:end]
        borders.append(len(ids))
    return PackedBatch(
        input_ids_T=torch.tensor(ids, dtype=torch.int64),
        position_ids_T=torch.tensor(positions, dtype=torch.int64),
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
        supervised_S=torch.tensor(rows, dtype=torch.int64),
        targets_S=torch.tensor(targets, dtype=torch.int64),
        num_supervised_tokens=len(rows),
    )


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

    Returns lists of indices into `lengths`. The result depends on nothing but the arguments; best-fit decreasing
    needs at most 11/9 of the fewest rows possible, plus one. Source: Johnson 1974, SIAM J. Comput. 3(4).
    """
    assert max(lengths, default=0) <= max_length
    rows: list[list[int]] = []
    rooms: list[int] = []  # sorted; rooms[i] belongs to row owners[i]
    owners: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, lengths[index])
        if at == len(rooms):
            room, owner = max_length, len(rows)
            rows.append([])
        else:
            room, owner = rooms.pop(at), owners.pop(at)
        rows[owner].append(index)
        left = room - lengths[index]
        at = bisect.bisect_left(rooms, left)
        rooms.insert(at, left)
        owners.insert(at, owner)
    return rows


def packing_stats(lengths: Sequence[int], rows: Sequence[Sequence[int]], max_length: int) -> PackingStats:
    """Count how much of the rows is used."""
    return PackingStats(len(rows), sum(lengths[i] for row in rows for i in row), max_length)
