"""`lorakeet reproduce` trains an adapter again from what it carries: equal to the bit, or it says by how much not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from lorakeet.cli import main
from lorakeet.config import resolve_config
from lorakeet.rundir.provenance import RECORD, logged_steps, read_provenance
from lorakeet.training.repeat import repeated_config, rounded_otherwise


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_directory):
    """Train once; every test works with copies."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_model_directory, folder / "model")
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--max-steps", "4", "--batch-size", "4", "--r", "2", "--lr", "1e-2"]
    settings += ["--set", "training_config.logging_steps=1", "--set", "training_config.sample_prompts=1"]
    arguments = ["train", str(folder / "model"), str(folder / "rows.jsonl"), "-o", str(folder / "run")]
    assert main.run([*arguments, *settings]) == 0
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """Copy the adapter alone, elsewhere."""
    return Path(shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter"))


def changed(adapter, change):
    """Change what an adapter says of its training."""
    record = json.loads((adapter / RECORD).read_text())
    change(record["training"])
    (adapter / RECORD).write_text(json.dumps(record))


def test_an_adapter_moved_away_from_its_run_is_reproduced_to_the_bit(adapter, tmp_path, capsys):
    assert main.run(["reproduce", str(adapter), "-o", str(tmp_path / "again")]) == 0
    assert "Reproduced to the bit: all 1,472 weights, and loss, gradient norm and tokens of 4 logged steps." in (
        capsys.readouterr().out
    )
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / "adapter" / weights).read_bytes() == (adapter / weights).read_bytes()


def test_data_and_base_are_found_where_they_were_moved(trained, adapter, tmp_path, capsys):
    shutil.copytree(trained / "model", tmp_path / "base")
    (tmp_path / "data").mkdir()
    shutil.copy(trained / "rows.jsonl", tmp_path / "data" / "renamed.jsonl")

    def gone(training):
        training["base"]["path"] = training["config"]["model"] = str(tmp_path / "gone")
        training["data"][0]["path"] = str(tmp_path / "gone.jsonl")

    changed(adapter, gone)
    moved = ["--data", str(tmp_path / "data"), "--model", str(tmp_path / "base")]
    assert main.run(["reproduce", str(adapter), "-o", str(tmp_path / "again"), "--json", *moved]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["is_equal"]
    assert found["yardstick"] is None
    assert main.run(["reproduce", str(adapter), *moved[2:]]) == 2
    assert "E-DATA-197" in capsys.readouterr().err
    assert main.run(["reproduce", str(adapter), *moved[:2]]) == 2
    assert "E-MODEL-122" in capsys.readouterr().err


def test_changed_data_and_another_base_are_named(trained, adapter, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text((trained / "rows.jsonl").read_text().replace("plus", "and"))
    changed(adapter, lambda training: training["data"][0].update(path=str(rows)))
    assert main.run(["reproduce", str(adapter), "-o", str(tmp_path / "again")]) == 2
    assert f"E-DATA-197 {rows} is not the file that was trained on: its SHA-256 is " in capsys.readouterr().err
    base = shutil.copytree(trained / "model", tmp_path / "base")
    (base / "tokenizer_config.json").write_text("{}")
    changed(adapter, lambda training: training["base"].update(path=str(base)))
    assert main.run(["reproduce", str(adapter), "--data", str(trained / "rows.jsonl"), "-o", str(tmp_path / "again")]) == 2
    assert f"E-MODEL-122 {base} is not the base model that was trained on: tokenizer_config.json is" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_rows_that_are_encoded_otherwise_are_refused_before_the_first_step(adapter, tmp_path, capsys):
    changed(adapter, lambda training: training["identity"].update(data="0" * 64))
    assert main.run(["reproduce", str(adapter), "-o", str(tmp_path / "again")]) == 2
    assert "E-DATA-198 the training data is not encoded as it was" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def other_loss(adapter, step, by, **versions):
    def change(training):
        training["steps"][step - 1]["loss"] += by
        training["versions"].update(versions)

    changed(adapter, change)


def test_other_versions_are_explained_and_the_yardstick_is_measured(adapter, tmp_path, capsys):
    other_loss(adapter, 2, 1e-8, torch="2.0.0")
    again = ["reproduce", str(adapter), "-o", str(tmp_path / "again")]
    assert main.run(again) == 0
    out = capsys.readouterr().out
    assert "  torch: 2.0.0 there, " in out
    assert "Reproduced, within rounding:\n  the numbers part at step 2: loss " in out
    assert "passes of 2 times 2 rows instead of 1 of 4" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    # The new runs are there, so only what is compared changes.
    other_loss(adapter, 3, 1e-2)
    assert main.run([*again, "--resume"]) == 2
    out = capsys.readouterr().out
    assert "NOT reproduced:" in out
    assert "Beyond it from step 3 on: loss " in out


def test_on_the_same_machine_nothing_but_equal_numbers_will_do(adapter, tmp_path, capsys):
    other_loss(adapter, 3, 1e-8)
    assert main.run(["reproduce", str(adapter), "-o", str(tmp_path / "again")]) == 2
    out = capsys.readouterr().out
    assert "NOT reproduced:\n  the numbers part at step 3: loss " in out
    assert "Versions and machine are the same" in out
    assert not (tmp_path / "again-yardstick").exists()


def test_an_adapter_without_a_record_or_with_other_weights_is_refused(trained, adapter, tmp_path, capsys):
    assert main.run(["reproduce", str(trained / "run"), "-o", str(trained / "run"), "--resume"]) == 2
    assert "E-CFG-48" in capsys.readouterr().err
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert main.run(["reproduce", str(adapter)]) == 2
    assert "E-ADPT-242" in capsys.readouterr().err
    (adapter / RECORD).write_text('{"training": {}}')
    assert main.run(["reproduce", str(adapter)]) == 2
    assert "E-ADPT-241" in capsys.readouterr().err
    (adapter / RECORD).unlink()
    assert main.run(["reproduce", str(adapter)]) == 2
    assert "E-ADPT-240" in capsys.readouterr().err


def test_what_is_given_away_says_no_paths(trained, adapter):
    record = read_provenance(adapter).without_paths()
    assert str(trained) not in json.dumps(dataclasses.asdict(record))
    assert record.config["data"]["train"] == ["rows.jsonl"]
    config = repeated_config(record, data=[str(trained)], model=str(trained / "model"))
    assert config.data.train == [str(trained / "rows.jsonl")]


def test_weights_of_sources_stay(trained, adapter):
    source = f"{trained / 'rows.jsonl'}@2"

    def twice(training):
        training["config"]["data"]["train"] = training["data"][0]["source"] = source
        training["config"]["data"]["train"] = [source]

    changed(adapter, twice)
    assert repeated_config(read_provenance(adapter)).data.train == [source]


@pytest.mark.parametrize(
    ("rows", "passes", "dropout", "expected"),
    [(8, 1, 0, (4, 2)), (3, 1, 0, (1, 3)), (1, 6, 0, (2, 3)), (1, 3, 0, (3, 1)), (8, 1, 0.1, (8, 1)), (1, 1, 0, (1, 1))],
)
def test_the_yardstick_takes_the_same_rows_a_step(rows, passes, dropout, expected):
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes, "learning_rate": 1.0}
    config = resolve_config(
        model="m", sections={"data": {"train": "d"}, "training_config": settings, "peft_config": {"lora_dropout": dropout}}
    )
    changed = rounded_otherwise(config)[0].training_config
    assert (changed.per_device_train_batch_size, changed.gradient_accumulation_steps) == expected
    assert changed.learning_rate == (1 + 1e-6 if expected == (rows, passes) else 1)


def test_a_long_run_keeps_a_thousand_of_its_steps_and_the_last(tmp_path):
    lines = (json.dumps({"step": step, "loss": 1.0, "elapsed_s": 1.0}) for step in range(1, 2502))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    kept = logged_steps(tmp_path / "metrics.jsonl")
    assert (len(kept), kept[1], kept[-1]["step"]) == (835, {"step": 4, "loss": 1.0}, 2501)
