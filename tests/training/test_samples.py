"""Samples while training: the one generator's answers, and not a bit of training changed by looking."""

import json

import pytest
from rich.console import Console
from safetensors.torch import load_file

from lorakeet import api
from lorakeet.errors import ConfigError
from lorakeet.rundir.rows import SampleRow
from lorakeet.training.reporting import ConsoleReporter
from tests.cli import conftest as cli

own_cache, tiny_model_directory = cli.own_cache, cli.tiny_model_directory

SETTINGS = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "bf16": False}
LOOKING = {"eval_strategy": "steps", "eval_steps": 2, "sample_max_new_tokens": 9}


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_model_directory):
    """Train on little sums, with dropout."""
    folder = tmp_path_factory.mktemp("samples")
    data = folder / "rows.jsonl"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name, *, resume=False, **settings):
        values = {**SETTINGS, "output_dir": str(folder / name), **settings}
        return api.train(
            str(tiny_model_directory),
            str(data),
            training_config=values,
            resume=resume,
            peft_config={"r": 2, "lora_dropout": 0.2},
            data_config={"eval_fraction": 0.2, "system": "be quick"},
        )

    return run


def samples(run):
    return [json.loads(line) for line in (run.directory / "samples.jsonl").read_text().splitlines()]


def test_training_is_the_same_to_the_bit_with_and_without_looking(train):
    blind = train("blind", eval_strategy="no")
    looking = train("looking", **LOOKING, sample_prompts=2)
    assert len(samples(looking)) == 2 * 4
    assert not (blind.directory / "samples.jsonl").exists()
    for file in ("params", "moments", "rng"):
        path = f"checkpoints/step-000006/{file}.safetensors"
        one, other = load_file(blind.directory / path), load_file(looking.directory / path)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one), file
    timeless = ("step", "loss", "grad_norm", "learning_rate")
    logged = [[[row[key] for key in timeless] for row in run.metrics if "loss" in row] for run in (blind, looking)]
    assert logged[0] == logged[1]


def test_held_out_rows_are_answered_as_evaluate_answers_them(train):
    run = train("rows", **LOOKING, sample_prompts=3)
    found = samples(run)
    assert [row["step"] for row in found] == [step for step in (0, 2, 4, 6) for _ in range(3)]
    answers = run.evaluate(metrics=["exact_match"], base=False, max_rows=3, max_new_tokens=9).tuned.answers
    expected = [(answer.place, answer.prompt, answer.reference, answer.text) for answer in answers]
    assert [(row["place"], row["prompt"], row["reference"], row["text"]) for row in found[-3:]] == expected
    assert {row["stop_reason"] for row in found} <= {"stop", "length"}


def test_prompts_are_answered_as_chat_answers_them_and_resuming_repeats_no_row(train):
    prompts = ["What is 3 plus 1?", "[bold]hello[/nonsense]"]
    run = train("prompts", **LOOKING, sample_prompts=prompts)
    found = samples(run)
    chat = run.chat(max_new_tokens=9)
    for row, prompt in zip(found[-2:], prompts, strict=True):
        chat.reset("be quick")
        assert (row["prompt"], row["text"], "reference" in row) == (prompt, chat.ask(prompt).text, False)
    train("prompts", resume=True, **LOOKING, sample_prompts=prompts)
    assert samples(run) == found


def test_a_prompt_that_leaves_no_room_is_refused_before_training(train):
    with pytest.raises(ConfigError, match=r"E-CFG-44 sample_prompts\[1\] the prompt has \d+ tokens"):
        train("long", sample_prompts=["hi", "fox " * 500])


def test_the_console_shows_what_was_written_as_it_is(capsys):
    shown = ConsoleReporter(8, console=Console(width=200))
    shown.log(SampleRow(step=4, place="", prompt="[red]a\nb[/x]", text="y" * 400, reference="z", stop_reason="stop"))
    assert capsys.readouterr().out.splitlines() == [
        "step     4  prompt    [red]a b[/x]",
        f"            answer    {'y' * 299}…",
        "            expected  z",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 1}, "The warm-up covers the whole run (1 step), so nothing is trained"),
        ({"max_steps": 2, "warmup_steps": 4}, "The warm-up covers the whole run (2 steps), so hardly anything is trained"),
        ({"learning_rate": 1e-9, "max_steps": 2, "warmup_steps": 1}, "far below what trains adapters"),
        ({"learning_rate": 3.0, "max_steps": 2, "warmup_steps": 1}, "far above what trains adapters"),
    ],
)
def test_a_run_that_cannot_learn_says_so_before_it_starts(train, caplog, settings, said):
    run = train(f"doubtful-{abs(hash(said))}", eval_strategy="no", **settings)
    assert said in caplog.text
    assert said in (run.directory / "train.log").read_text()
