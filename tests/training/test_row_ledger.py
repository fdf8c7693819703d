"""The ledger of a run: free of consequences, exact after a resume, and it finds rows that are wrong."""

import copy
import json
import random

import pytest
import torch

from lorakeet.config import TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.reports.ledger import Ledger
from lorakeet.rundir.row_ledger import RowLedger
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters


def train(model, examples, directory=None, state=None, stop_at=None, **values):
    settings = {"learning_rate": 1e-2, "logging_steps": 3, "eval_strategy": "no", "num_train_epochs": 2, **values}
    trainer = Trainer(model, TrainingConfig(**settings), examples)
    if state is not None:
        trainer.load_state(state)
    if directory is not None:
        trainer.ledger = RowLedger(directory, trainer.step)
    kept = []

    def after_step(step):
        if step == stop_at:
            kept.append(copy.deepcopy(trainer.state()))  # it refers to live tensors

    trainer.run(Reporters(), after_step)
    return trainer, kept


def rows(directory):
    return [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 40}, {"gradient_accumulation_steps": 3}])
def test_every_row_stands_there_once_an_epoch_and_no_number_of_training_changes(make_model, examples, tmp_path, options):
    values = {"per_device_train_batch_size": 4, **options}
    trainer, _ = train(make_model(), examples, tmp_path, **values)
    plain, _ = train(make_model(), examples, **values)
    for name, param in trainer.named_params.items():
        assert torch.equal(param, plain.named_params[name]), name
    found = rows(tmp_path)
    for epoch in (1, 2):
        places = [row["place"] for row in found if row["epoch"] == epoch]
        assert sorted(places) == sorted(example.place for example in examples)
    tokens = {example.place: example.num_supervised_tokens for example in examples}
    assert all(row["tokens"] == tokens[row["place"]] for row in found)


def test_a_resumed_run_ends_with_the_same_ledger(make_model, examples, tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    straight.mkdir()
    cut.mkdir()
    train(make_model(), examples, straight, per_device_train_batch_size=4)
    copied = (straight / "rows.jsonl").read_bytes()
    _, (state,) = train(make_model(), examples, cut, stop_at=4, per_device_train_batch_size=4)
    (cut / "rows.jsonl").write_bytes(copied + b'{"step": 1')  # as if the first part had gone on, and then been cut
    train(make_model(), examples, cut, state=state, per_device_train_batch_size=4)
    assert (cut / "rows.jsonl").read_bytes() == copied


def test_wrong_rows_stand_in_the_worst_decile(make_model, tmp_path):
    """Teach a rule, with 5 % of the answers wrong: at least 80 % of those are among the hardest tenth."""
    rng = random.Random(0)
    examples, wrong = [], set()
    for number in range(200):
        first = rng.randrange(3, 30)
        answer = [first + 25, first + 26, first + 27]
        if number % 20 == 7:
            wrong.add(f"rows.jsonl:{number + 1}")
            rng.shuffle(answer)
            answer = [rng.randrange(3, 61) for _ in answer]
        examples.append(Example([1, first, first, *answer], ((3, 6),), f"rows.jsonl:{number + 1}"))
    train(make_model(r=16), examples, tmp_path, num_train_epochs=5, per_device_train_batch_size=10)
    worst = {row.place for row in Ledger.of(rows(tmp_path)).hardest(len(examples) // 10)}
    assert len(wrong) == 10
    assert len(wrong & worst) >= 8
