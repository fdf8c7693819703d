"""The order of training: which examples each optimizer step sees, as a pure function of (seed, epoch, step).

data in: encoded Examples → out: for each step a list of micro-batches. No state: any step can be computed at once,
so a resumed run goes on exactly where it stopped.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from lorakeet.data.conversation import Example


@lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(num_rows))
    # Seeding with a string hashes it with SHA-512: independent of platform and of PYTHONHASHSEED.
    random.Random(f"lorakeet/{seed}/{epoch}").shuffle(order)
    return tuple(order)


def epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """Shuffle the row indices of one epoch; equal arguments give equal orders, on every machine."""
    return list(_order(num_rows, seed, epoch))


def steps_per_epoch(num_units: int, *, batch_size: int, grad_accum_steps: int, world_size: int = 1) -> int:
    """Count the optimizer steps of one epoch, the last partial one included."""
    return math.ceil(num_units / (batch_size * grad_accum_steps * world_size))


def total_steps(
    num_units: int,
    *,
    batch_size: int,
    grad_accum_steps: int,
    num_epochs: float | None = None,
    max_steps: int | None = None,
    world_size: int = 1,
) -> int:
    """Count the optimizer steps of a run; max_steps wins where both are given."""
    if max_steps is not None:
        return max_steps if num_units else 0
    per_epoch = steps_per_epoch(num_units, batch_size=batch_size, grad_accum_steps=grad_accum_steps, world_size=world_size)
    return math.ceil((1 if num_epochs is None else num_epochs) * per_epoch)


def iterate_steps(
    examples: Sequence[Example],
    *,
    batch_size: int,
    grad_accum_steps: int,
    seed: int,
    num_epochs: float | None = None,
    max_steps: int | None = None,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    rows: Sequence[Sequence[int]] | None = None,
    shuffle: bool = True,
) -> Iterator[list[list[Example]]]:
    """Yield, for each optimizer step from start_step on, this rank's micro-batches.

    A step takes batch_size * grad_accum_steps * world_size units of the epoch's order; a unit is one example, or
    with `rows` (from pack.fill_rows) a group of them. The set of a step does not depend on how it is split into
    micro-batches and ranks. The last, partial step of an epoch is kept. Ranks work hand in hand: each gets about as
    many tokens as every other, and exactly as many micro-batches; one that it has no units left for is empty.
    """
    num_units = len(examples) if rows is None else len(rows)
    split = {"batch_size": batch_size, "grad_accum_steps": grad_accum_steps, "world_size": world_size}
    last = total_steps(num_units, num_epochs=num_epochs, max_steps=max_steps, **split)
    per_epoch = steps_per_epoch(num_units, **split)
    size = batch_size * grad_accum_steps * world_size
    for step in range(start_step, last):
        epoch, index = divmod(step, per_epoch)
        order: Sequence[int] = _order(num_units, seed, epoch) if shuffle else range(num_units)
        units = order[index * size : (index + 1) * size]
        num_mine = math.ceil(len(units) / world_size)
        if world_size > 1:
            units = _dealt(units, lambda unit: _num_tokens(examples, rows, unit), rank, world_size)
        groups = [[unit] if rows is None else rows[unit] for unit in units]
        yield [[examples[i] for group in groups[at : at + batch_size] for i in group] for at in range(0, num_mine, batch_size)]


def _dealt(units: Sequence[int], num_tokens: Callable[[int], int], rank: int, world_size: int) -> list[int]:
    """Return a rank's part of a step's units: dealt largest first, there and back, so that all finish together."""
    ordered = sorted(units, key=num_tokens, reverse=True)
    there = list(range(world_size))
    turns = itertools.cycle(there + there[::-1])
    return [unit for unit, turn in zip(ordered, turns, strict=False) if turn == rank]


def _num_tokens(examples: Sequence[Example], rows: Sequence[Sequence[int]] | None, unit: int) -> int:
    return sum(len(examples[i].input_ids) for i in ([unit] if rows is None else rows[unit]))
