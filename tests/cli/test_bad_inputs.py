"""BAD_INPUTS rows 31 to 52 through the real command line: one line with its own code, status 2, nothing written."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lorakeet
from lorakeet.cli import main
from lorakeet.errors import ConfigError, LorakeetError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def refuse(tiny_model_directory, data, tmp_path, monkeypatch, capsys):
    """Run `lorakeet train` with more arguments, and give the one line it was refused with."""
    monkeypatch.chdir(tmp_path)

    def run(*more, model=True):
        before = snapshot(tmp_path)
        arguments = [str(tiny_model_directory), str(data)] if model else []
        assert main.run(["train", *arguments, *map(str, more)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if not re.match(r"\d\d:\d\d:\d\d INFO ", line)]
        assert len(lines) == 1, captured.err
        assert snapshot(tmp_path) == before
        return lines[0]

    return run


def snapshot(folder):
    """Return every file below a folder with its contents."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.startswith(".lock")
    }


@pytest.mark.parametrize(
    ("row", "assignment", "text"),
    [
        (31, "peft_config.lora_rnak=8", 'peft_config unknown key "lora_rnak". Did you mean '),
        (31, "training_config.learning_rte=1", 'unknown key "learning_rte". Did you mean learning_rate?'),
        (36, "training_config.learning_rate=0", "training_config.learning_rate is 0; allowed: a number above 0."),
        (36, "training_config.learning_rate=-1", "learning_rate is -1; allowed: a number above 0."),
        (36, "training_config.learning_rate=.nan", "learning_rate is nan; allowed: a number above 0."),
        (36, "training_config.learning_rate=.inf", "learning_rate is inf; allowed: a number above 0."),
        (36, "training_config.learning_rate=fast", "learning_rate is 'fast'; allowed: a number above 0."),
        (36, "training_config.learning_rate=true", "learning_rate is True; allowed: a number above 0."),
        (37, "peft_config.r=0", "peft_config.r is 0; allowed: a whole number from 1 to 1024."),
        (37, "peft_config.r=1.5", "peft_config.r is 1.5; allowed: a whole number from 1 to 1024."),
        (37, "peft_config.r=1000000000", "peft_config.r is 1000000000; allowed: a whole number from 1 to 1024."),
        (37, "peft_config.rank_pattern={o_proj: 0}", "rank_pattern.o_proj is 0; allowed: a whole number from 1 to 1024."),
        (38, "training_config.per_device_train_batch_size=0", "batch_size is 0; allowed: a whole number from 1."),
        (38, "training_config.per_device_eval_batch_size=0", "batch_size is 0; allowed: a whole number from 1."),
        (38, "training_config.gradient_accumulation_steps=0", "steps is 0; allowed: a whole number from 1."),
        (
            42,
            "peft_config.target_modules=[q_proj]",
            "target_modules names q_proj but not k_proj and v_proj; "
            "the model has them fused in one qkv_proj. Name qkv_proj, or all of q_proj, k_proj, v_proj.",
        ),
        (
            42,
            "peft_config.target_modules=[nonsense]",
            'target "nonsense" matches 0 modules; the model has '
            "embed_tokens, qkv_proj, o_proj, gate_up_proj, down_proj, lm_head. Name some of these.",
        ),
        (42, "peft_config.target_modules=[]", "target_modules is empty"),
        (43, 'peft_config.target_modules="(.+)+#"', "'(.+)+#' is not a module name. List the names; "),
        (44, "training_config.max_length=129", "max_length is 129; the model's limit is 128 tokens. Use 128 at most"),
        (45, "training_config.packing=true", "packing fills rows of max_length tokens, and max_length is not set"),
        (49, "training_config.run_name=../../x", "run_name is '../../x'; allowed: [A-Za-z0-9._-]{1,64}"),
        (51, "training_config.seed=-1", "training_config.seed is -1; allowed: a whole number from 0 and below"),
        (51, "training_config.seed=18446744073709551616", "seed is 18446744073709551616; allowed: a whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_its_own_code(row, assignment, text, refuse):
    line = refuse("--set", assignment, *(["-o", "run"] if row != 49 else []))
    assert line.startswith(f"E-CFG-{row} ")
    assert text in line


@pytest.mark.parametrize(
    ("row", "yaml", "text"),
    [
        (32, "peft_config:\n  r: 1\n  r: 2\n", 'run.yaml:3 key "r" is repeated, first on line 2'),
        (33, "peft_config: !!python/object/apply:os.system [touch pwned]\n", "run.yaml:1 tags are forbidden"),
        (34, "a: &a [x]\npeft_config: [*a, *a]\n", "run.yaml:1 aliases and anchors are forbidden"),
    ],
)
def test_yaml_that_is_ambiguous_or_dangerous_is_refused(row, yaml, text, refuse, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml)
    line = refuse("--config", "run.yaml")
    assert line.startswith(f"E-CFG-{row} ")
    assert text in line


def test_row_35_a_rate_without_a_dot_is_a_number(refuse, tmp_path):
    (tmp_path / "run.yaml").write_text('training_config: {learning_rate: 2e-4, weight_decay: "1e-2", max_length: 129}\n')
    assert refuse("--config", "run.yaml", "-o", "run").startswith("E-CFG-44 ")  # everything before that was accepted


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "2", "--max-steps", "5"],
        ["--set", "training_config.num_train_epochs=2", "--set", "training_config.max_steps=5"],
    ],
)
def test_row_39_epochs_and_steps_are_a_choice(arguments, refuse):
    assert refuse(*arguments).startswith("E-CFG-39 training_config num_train_epochs is 2 and max_steps is 5. Choose one")


def test_row_40_bfloat16_that_the_gpu_lacks(monkeypatch):
    import torch

    from lorakeet.machine.hardware import choose_dtype

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: False)
    with pytest.raises(ConfigError, match=r"^E-CFG-40 training_config\.bf16 this GPU cannot .* Set bf16: false\.$"):
        choose_dtype(True, "cuda")


def test_row_46_an_output_inside_a_file(refuse, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/run"):
        assert refuse("-o", output).startswith(f"E-CFG-46 {output} cannot be written: ")


def test_row_46_a_directory_without_permission(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:  # who may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(LorakeetError, match=r"^E-CFG-46 .*/closed/run cannot be written: Permission denied\."):
            lorakeet.train("demo", "demo", training_config={"output_dir": folder / "run"})
    finally:
        os.seteuid(user)


def test_row_48_an_output_that_holds_another_run_or_something_else(refuse, tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes"
    for folder, name in ((run, "config.yaml"), (notes, "thesis.txt")):
        folder.mkdir()
        (folder / name).write_text("mine")
    overwrite = ["--set", "training_config.overwrite_output_dir=true"]
    line = refuse("-o", "run", *overwrite)
    assert line.startswith("E-CFG-48 run holds a run already. ")
    assert all(word in line for word in ("--resume", "--restart", "another output directory"))
    for more in (overwrite, ["--restart"], ["--resume"]):
        assert refuse("-o", "notes", *more).startswith("E-CFG-48 notes is not empty and holds no run. ")


@pytest.mark.parametrize("name", ["..", ".", "...", "a/b", "/etc", "a\\b", "a\0b", "x" * 65, "", "ä", "a b", "-\n", "$HOME"])
def test_row_49_names_are_plain(name):
    with pytest.raises(LorakeetError, match=r"^E-CFG-49 training_config\.run_name "):
        lorakeet.train("demo", "demo", training_config={"run_name": name})


def test_row_50_a_second_process(refuse, tmp_path):
    code = (
        "import sys; from pathlib import Path; from lorakeet.rundir.checkpoint import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "run"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        assert refuse("-o", "run").startswith(f"E-CFG-50 run locked by process {first.pid}. ")
        first.stdin.close()
        assert first.wait(30) == 0


def test_row_52_an_unknown_flag_shows_the_usage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["train", "demo", "demo", "--epoch", "2"]) == 2
    error = capsys.readouterr().err
    assert "Usage: " in error
    assert "No such option: --epoch" in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("deepspeed", "zero3.json"), ("group_by_length", "true"), ("fp16", "true"), ("dataloader_drop_last", "true")],
)
def test_what_would_change_learning_and_cannot_be_honoured_stops(key, value, refuse):
    line = refuse("--set", f"training_config.{key}={value}")
    assert line.startswith(f"E-CFG-108 training_config.{key} cannot be honoured as ")


def test_variants_of_lora_that_are_not_here_stop(refuse):
    line = refuse("--set", "peft_config.lora_bias=true")
    assert line.startswith("E-CFG-108 peft_config.lora_bias cannot be honoured")
