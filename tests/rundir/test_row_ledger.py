"""RUN/rows.jsonl holds what was found, and after a resume nothing twice."""

import json

import torch

from lorakeet.data.conversation import Example
from lorakeet.rundir.row_ledger import RowLedger

ROWS = [Example([1, 2, 3, 4], ((1, 4),), "a.jsonl:1"), Example([1, 2, 3], ((2, 3),), "a.jsonl:2")]


def read(directory):
    return [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]


def take_step(ledger, step, epoch=1):
    ledger.add(torch.tensor([6.0 * step, 1.0]))
    ledger.end_step(step, epoch, [ROWS])


def test_a_row_has_the_mean_loss_of_its_supervised_tokens(tmp_path):
    ledger = RowLedger(tmp_path)
    take_step(ledger, 1)
    ledger.write()
    assert read(tmp_path) == [
        {"step": 1, "epoch": 1, "place": "a.jsonl:1", "loss": 2.0, "tokens": 3},
        {"step": 1, "epoch": 1, "place": "a.jsonl:2", "loss": 1.0, "tokens": 1},
    ]


def test_a_resumed_run_takes_out_what_it_will_write_again(tmp_path):
    ledger = RowLedger(tmp_path)
    for step in (1, 2, 3):
        take_step(ledger, step)
    ledger.write(sync=True)
    straight = (tmp_path / "rows.jsonl").read_bytes()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"step": 1, "epo')
    ledger = RowLedger(tmp_path, first_step=2)
    take_step(ledger, 3)
    ledger.write()
    assert (tmp_path / "rows.jsonl").read_bytes() == straight
    assert RowLedger(tmp_path) is not None
    assert read(tmp_path) == []


def test_a_step_that_is_not_taken_leaves_no_rows(tmp_path):
    ledger = RowLedger(tmp_path)
    ledger.add(torch.tensor([1.0, 1.0]))
    ledger.drop()
    take_step(ledger, 1)
    ledger.add(torch.tensor([9.0]))  # a pass that keeps other processes company
    ledger.end_step(2, 1, [[]])
    ledger.write()
    assert [row["step"] for row in read(tmp_path)] == [1, 1]
