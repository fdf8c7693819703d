"""lm-evaluation-harness on our engine: its own tasks' numbers, equal to those of its backend for transformers."""

import json
from functools import partial

import pytest

pytest.importorskip("lm_eval")
import torch
import transformers
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import lorakeet as lora
from lorakeet import chat_model
from lorakeet.cli.main import run
from lorakeet.errors import ConfigError
from lorakeet.evaluation import harness
from lorakeet.evaluation.harness import Harness, run_tasks
from lorakeet.lora.inject import lora_layers
from tests.cli.conftest import write_tiny_model

pytestmark = pytest.mark.filterwarnings("default")
TASKS = ["tiny_choice", "tiny_rolling", "tiny_answer"]
TEXTS = ["the fox", "hello world", "the dog on the land", "straße", "a", "hello hello " * 60]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = write_tiny_model(tmp_path_factory.mktemp("harness") / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def theirs(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=128)


@pytest.fixture
def ours(directory):
    return chat_model.load(str(directory), bf16=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tasks of local files."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": text, "wrong": "dog", "right": "fox land"} for text in TEXTS[:5]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    shared |= {"doc_to_text": "{{q}} says", "metadata": {"version": 1}}
    tasks = {
        "tiny_choice": {"output_type": "multiple_choice", "doc_to_choice": "{{[wrong, right]}}", "doc_to_target": 1},
        "tiny_rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}} and more"},
        "tiny_answer": {
            "output_type": "generate_until",
            "doc_to_target": "{{right}}",
            "generation_kwargs": {"until": ["o", "e"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    tasks["tiny_rolling"]["metric_list"] = [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}]
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **task}))
    return folder


def instances(kind, *arguments):
    return [Instance(kind, {}, one, at) for at, one in enumerate(arguments)]


def test_likelihoods_are_those_of_the_backend_for_transformers(ours, theirs, monkeypatch):
    monkeypatch.setattr(harness, "PASS_TOKENS", 40)
    mine = Harness(ours)
    pairs = instances("loglikelihood", *((text, f" {other}") for text in ["", *TEXTS] for other in TEXTS[:4]))
    for (one, one_greedy), (other, other_greedy) in zip(mine.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert (one, one_greedy) == (pytest.approx(other, rel=1e-4), other_greedy)
    texts = instances("loglikelihood_rolling", *((text,) for text in TEXTS))
    assert mine.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-4)


def test_answers_are_those_of_the_backend_for_transformers(ours, theirs):
    options = {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", *((text, options) for text in TEXTS))
    answers = Harness(ours).generate_until(asked)
    assert answers == theirs.generate_until(asked)
    assert len(set(answers)) > 2
    with pytest.raises(ConfigError, match="E-CFG-133 --task a task asks for num_beams"):
        Harness(ours).generate_until(instances("generate_until", ("a", {"num_beams": 2, "until": []})))


def test_tasks_have_the_numbers_of_the_package_and_differ_by_the_adapter(ours, theirs, folder, monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = {"task_manager": manager, "log_samples": False, "bootstrap_iters": harness.RESAMPLES}
    expected = simple_evaluate(model=theirs, tasks=TASKS, **options)
    model = lora.inject(ours.model, lora.LoraConfig(r=2, lora_alpha=64))
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(2))
    found = run_tasks(ours, TASKS, folder=folder)
    for task in TASKS:
        numbers = {name: value for name, value in expected["results"][task].items() if isinstance(value, float) and "," in name}
        assert found["base"][task] == pytest.approx(
            {name.removesuffix(",none"): one for name, one in numbers.items()}, rel=1e-4
        )
    assert found["tuned"]["tiny_rolling"] != pytest.approx(found["base"]["tiny_rolling"], rel=1e-2)
    assert list(run_tasks(ours, ["tiny_choice"], folder=folder, base=False, max_rows=2, with_template=True)) == ["tuned"]
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(ConfigError, match="E-CFG-134"):
        run_tasks(ours, ["tiny_nothing"])


@pytest.fixture(scope="module")
def trained_run(directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    turns = [{"role": "user", "content": "the fox says"}, {"role": "assistant", "content": "fox land"}]
    (folder / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    settings = {"output_dir": str(folder / "run"), "max_steps": 3, "learning_rate": 3e-2, "bf16": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKEET_CACHE", str(folder / "cache"))
        patch.setenv("LORAKEET_COMPILE", "0")
        return lora.train(str(directory), str(folder / "rows.jsonl"), training_config=settings)


def test_the_command_prints_the_numbers_of_each_model(trained_run, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["evaluate", str(trained_run.directory), "--include-path", str(folder), "--task", "tiny_choice, tiny_rolling"]
    assert run([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run_dir"] == str(trained_run.directory)
    assert printed["tasks"] == run_tasks(trained_run.load(), TASKS[:2], folder=folder)
    assert printed["tasks"]["tuned"] != printed["tasks"]["base"]
    assert run([*command, "--task", "tiny_answer", "--no-base", "--max-rows", "2", "--apply-chat-template"]) == 0
    captured = capsys.readouterr()
    assert [name in captured.out for name in (*TASKS, "tuned", "base")] == [True] * 4 + [False]
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "fatal" not in captured.err


def test_the_command_refuses_what_cannot_be_run(trained_run, folder, capsys, monkeypatch):
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    (folder / "gone.yaml").write_text(
        (folder / "tiny_choice.yaml").read_text().replace("tiny_choice", "gone").replace("rows.", "no.")
    )
    command = ["evaluate", str(trained_run.directory), "--include-path"]
    for where, task, expected in (
        (folder, "tiny_nothing", "E-CFG-134 --task no task is named tiny_nothing"),
        (folder / "nowhere", "tiny_choice", "E-CFG-134 --include-path"),
        (folder, "gone", "E-CFG-135 --task the rows cannot be loaded"),
    ):
        assert run([*command, str(where), "--task", task]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith(expected)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run([*command, str(folder), "--task", "tiny_choice"]) == 2
    assert "pip install 'lorakeet[tasks]'" in capsys.readouterr().err
