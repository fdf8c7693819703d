"""The order of training."""

import pytest

from lorakeet.data.conversation import Example
from lorakeet.data.order import epoch_order, iterate_steps, steps_per_epoch, total_steps
from lorakeet.data.pack import fill_rows

EXAMPLES = [Example([1, i], ((1, 2),), str(i)) for i in range(21)]


def places(steps):
    return [[[example.place for example in micro] for micro in step] for step in steps]


def flat(step):
    return sorted(place for micro in step for place in micro)


def test_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(10, 42, 0) == [3, 1, 6, 8, 0, 4, 5, 2, 9, 7]  # golden: the same on every machine
    assert epoch_order(10, 42, 0) == epoch_order(10, 42, 0)
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert sorted(epoch_order(50, 1, 2)) == list(range(50))


def test_every_epoch_shows_every_row_once_and_keeps_the_last_step():
    steps = places(iterate_steps(EXAMPLES, batch_size=2, grad_accum_steps=2, seed=1, num_epochs=2))
    assert len(steps) == 12 == total_steps(21, batch_size=2, grad_accum_steps=2, num_epochs=2)
    for epoch in (steps[:6], steps[6:]):
        assert sorted(int(p) for step in epoch for p in flat(step)) == list(range(21))
        assert [len(flat(step)) for step in epoch] == [4, 4, 4, 4, 4, 1]
    assert steps[:6] != steps[6:]


def test_steps_hold_the_same_rows_however_they_are_split():
    splits = [(8, 1), (4, 2), (2, 4), (1, 8)]
    runs = [
        [flat(step) for step in places(iterate_steps(EXAMPLES, batch_size=b, grad_accum_steps=g, seed=3, num_epochs=1))]
        for b, g in splits
    ]
    assert all(run == runs[0] for run in runs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_step(world_size):
    options = {"grad_accum_steps": 2, "seed": 5, "num_epochs": 2}
    ranks = [
        places(iterate_steps(EXAMPLES, batch_size=1, rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]
    assert all(len({len(rank[i]) for rank in ranks}) == 1 for i in range(len(ranks[0])))
    one = places(iterate_steps(EXAMPLES, batch_size=world_size, **options))
    assert [sorted(p for rank in ranks for p in flat(rank[i])) for i in range(len(one))] == [flat(s) for s in one]


def test_a_rank_without_rows_gets_empty_micro_batches():
    options = {"batch_size": 1, "grad_accum_steps": 4, "seed": 5, "num_epochs": 1, "world_size": 2}
    first, second = (places(iterate_steps(EXAMPLES[:13], rank=rank, **options)) for rank in range(2))
    assert [len(micro) for micro in first[-1]] == [1, 1, 1]
    assert [len(micro) for micro in second[-1]] == [1, 1, 0]


def test_ranks_get_about_as_many_tokens():
    ragged = [Example([1] * (5 + (i * 37) % 90), ((1, 2),), str(i)) for i in range(64)]
    options = {"batch_size": 4, "grad_accum_steps": 2, "seed": 0, "num_epochs": 1, "world_size": 2}
    first, second = (list(iterate_steps(ragged, rank=rank, **options)) for rank in range(2))
    for ours, theirs in zip(first, second, strict=True):
        counts = [sum(len(row.input_ids) for micro in step for row in micro) for step in (ours, theirs)]
        assert max(counts) < 1.1 * min(counts)


def test_resumes_at_any_step():
    options = {"batch_size": 2, "grad_accum_steps": 2, "seed": 9, "max_steps": 17}
    straight = places(iterate_steps(EXAMPLES, **options))
    assert len(straight) == 17
    for start in range(18):
        assert places(iterate_steps(EXAMPLES, start_step=start, **options)) == straight[start:]


def test_packed_rows_are_units():
    rows = fill_rows([len(e.input_ids) for e in EXAMPLES], 6)
    steps = places(iterate_steps(EXAMPLES, batch_size=1, grad_accum_steps=2, seed=1, num_epochs=1, rows=rows))
    assert len(steps) == steps_per_epoch(len(rows), batch_size=1, grad_accum_steps=2)
    assert sorted(int(p) for step in steps for p in flat(step)) == list(range(21))
    assert {len(micro) for step in steps for micro in step} == {3}


def test_without_rows_there_are_no_steps():
    assert list(iterate_steps([], batch_size=1, grad_accum_steps=1, seed=0, max_steps=5)) == []
    ordered = iterate_steps(EXAMPLES, batch_size=4, grad_accum_steps=1, seed=0, num_epochs=1, shuffle=False)
    assert [p for step in places(ordered) for micro in step for p in micro] == [str(i) for i in range(21)]
