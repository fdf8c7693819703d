"""The flat stream and best-fit rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakeet.data.conversation import Example
from lorakeet.data.pack import NO_TARGET, fill_rows, pack, packing_stats, recurring_size


def test_pack_by_hand():
    batch = pack([Example([5, 6, 7, 8], ((2, 4),)), Example([9, 10, 11], ((1, 2), (2, 3)))])
    assert batch.input_ids_T.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.supervised_S.tolist() == [1, 2, 4, 5]
    assert batch.targets_S.tolist() == [7, 8, 10, 11]
    assert batch.num_supervised_tokens == 4
    assert batch.input_ids_T.dtype == batch.targets_S.dtype == batch.supervised_S.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.to(torch.device("cpu")) is batch


def test_pack_refuses_a_target_without_predictor():
    with pytest.raises(AssertionError):
        pack([Example([1, 2], ((0, 1),))])


@given(st.integers(0, 100_000))
def test_recurring_sizes_are_few_and_close(n):
    size = recurring_size(n)
    assert n <= size <= n * (1 + 1 / 16)
    assert recurring_size(size) == size
    assert len({recurring_size(m) for m in range(1024, 2048)}) == 17  # both ends included


def test_filling_up_adds_a_document_of_its_own_and_rows_that_learn_nothing():
    examples = [Example(list(range(1, n + 1)), ((n // 2, n),)) for n in (70, 50, 45)]
    plain, filled = pack(examples), pack(examples, fill_up=True)
    T, S = len(plain.input_ids_T), len(plain.targets_S)
    assert (len(filled.input_ids_T), len(filled.targets_S)) == (recurring_size(T), recurring_size(S)) == (168, 84)
    assert torch.equal(filled.input_ids_T[:T], plain.input_ids_T)
    assert torch.equal(filled.supervised_S[:S], plain.supervised_S)
    assert torch.equal(filled.targets_S[:S], plain.targets_S)
    assert filled.cu_seqlens.tolist() == [*plain.cu_seqlens.tolist(), 168]
    assert filled.parents.tolist() == [*plain.parents.tolist(), -1]
    assert filled.targets_S[S:].tolist() == [NO_TARGET]
    assert filled.supervised_S[S:].tolist() == [167]
    assert filled.num_tokens == plain.num_tokens == 165
    assert filled.num_supervised_tokens == plain.num_supervised_tokens == S


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 300))
def test_rows_hold_everything_once_and_fit(lengths, limit):
    rows = fill_rows(lengths, limit)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= limit for row in rows)
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > limit  # no two rows would fit into one
    assert rows == fill_rows(list(lengths), limit)


def fewest_rows(lengths, limit) -> int:
    """The optimum, by trying everything."""

    def place(index, rooms):
        if index == len(lengths):
            return len(rooms)
        fits = {room for room in rooms if room >= lengths[index]}
        options = [place(index + 1, [*rooms, limit - lengths[index]])]
        for room in fits:
            rest = list(rooms)
            rest[rest.index(room)] -= lengths[index]
            options.append(place(index + 1, rest))
        return min(options)

    return place(0, [])


@given(st.lists(st.integers(1, 30), max_size=7))
def test_rows_are_close_to_the_optimum(lengths):
    assert len(fill_rows(lengths, 30)) <= 11 / 9 * fewest_rows(lengths, 30) + 6 / 9


def test_waste_by_hand():
    lengths = [6, 5, 4, 3, 2]
    rows = fill_rows(lengths, 10)
    assert [sum(lengths[i] for i in row) for row in rows] == [10, 10]
    assert packing_stats(lengths, rows, 10).waste == 0
    assert packing_stats([6, 6], fill_rows([6, 6], 10), 10).waste == pytest.approx(0.4)


def test_many_rows_are_quick():
    """The time grows with the number of rows, not with its square."""
    import random
    import time

    rng = random.Random(0)
    lengths = [rng.randint(50, 500) for _ in range(100_000)]
    start = time.process_time()
    rows = fill_rows(lengths, 576)
    assert time.process_time() - start < 5
    assert packing_stats(lengths, rows, 576).waste < 0.1
