"""Configuration: what is accepted, and the one line for what is not."""

from pathlib import Path

import pytest
import yaml

from lorakeet.config import LoraConfig, RunConfig, TrainingConfig, dump_yaml, load_yaml, pairs, resolve_config, with_overrides
from lorakeet.errors import ConfigError

MINIMAL = {"model": "demo", "data": "demo"}


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", r'E-CFG-32 .*run.yaml:3 key "a" is repeated, first on line 1'),
        ("a: !!python/object/apply:os.system ['true']\n", r"E-CFG-33 .*run.yaml:1 tags are forbidden"),
        ("a: &x [1]\nb: *x\n", r"E-CFG-34 .*run.yaml:1 aliases and anchors are forbidden"),
        ("a: [1\n", r"E-CFG-102 .*run.yaml:2 not valid YAML"),
        ("- 1\n", r"E-CFG-103 .*expected keys and values, found list"),
    ],
)
def test_yaml_rejects_what_is_ambiguous_or_dangerous(tmp_path, text, line):
    with pytest.raises(ConfigError, match=line):
        load_yaml(write(tmp_path, text))


def test_an_alias_bomb_is_refused_at_its_first_anchor(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(ConfigError, match="E-CFG-34"):
        load_yaml(write(tmp_path, bomb))


def test_learning_rates_are_numbers_however_they_are_written(tmp_path):
    values = load_yaml(write(tmp_path, "training_config: {learning_rate: 2e-4, weight_decay: 1E+2}\n"))
    assert values["training_config"] == {"learning_rate": 2e-4, "weight_decay": 100.0}


def test_no_is_a_word_and_only_true_and_false_are_truth_values(tmp_path):
    values = load_yaml(write(tmp_path, "a: no\nb: off\nc: true\nd: False\ne: 1e-5\nf: 3\n"))
    assert values == {"a": "no", "b": "off", "c": True, "d": False, "e": 1e-5, "f": 3}


def test_a_nested_complaint_is_said_once():
    with pytest.raises(ConfigError) as error:
        RunConfig(**MINIMAL, training_config={"learning_rat": 1})
    assert str(error.value).count("E-CFG") == 1


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        (TrainingConfig, "learning_rat", "learning_rate"),
        (LoraConfig, "lora_rnak", None),
        (LoraConfig, "lora_alhpa", "lora_alpha"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(section, key, near):
    with pytest.raises(ConfigError, match=rf'E-CFG-31 .*unknown key "{key}"') as error:
        section(**{key: 1})
    assert near is None or f"Did you mean {near}?" in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"warmup_ratio": 1.5},
        {"lr_scheduler_type": "exotic"},
        {"max_length": 1},
        {"num_train_epochs": 0},
    ],
)
def test_training_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainingConfig(**values)


def test_packing_needs_a_length():
    with pytest.raises(ConfigError, match=r"^E-CFG-45 training_config\.packing .*max_length is not set"):
        TrainingConfig(packing=True)
    assert TrainingConfig(packing=True, max_length=512).packing


@pytest.mark.parametrize("r", [0, 1.5, 10**9, "many"])
def test_ranks_out_of_range_are_refused(r):
    with pytest.raises(ConfigError, match=r"\br is"):
        LoraConfig(r=r)


def test_overrides_win_over_flags_and_flags_over_the_file(tmp_path):
    file = write(tmp_path, "model: demo\ndata: demo\ntraining_config: {learning_rate: 1e-3, seed: 1, max_steps: 5}\n")
    config = resolve_config(
        file=file,
        flags={"training_config": {"seed": 2, "max_steps": 6, "max_length": None}},
        assignments=["training_config.max_steps=7", "peft_config.target_modules=[qkv_proj]"],
    )
    settings = config.training_config
    assert (settings.learning_rate, settings.seed, settings.max_steps, settings.max_length) == (1e-3, 2, 7, None)
    assert config.peft_config.target_modules == ["qkv_proj"]


@pytest.mark.parametrize("assignment", ["learning_rate=1", "training_config.learning_rate", "a.b.c=1", "model.x=1"])
def test_overrides_of_another_form_are_refused(assignment):
    with pytest.raises(ConfigError, match="E-CFG-104"):
        with_overrides(dict(MINIMAL), [assignment])


@pytest.mark.parametrize(("values", "missing"), [({"data": "demo"}, "MODEL"), ({"model": "demo"}, "DATA")])
def test_model_and_data_must_be_named(tmp_path, values, missing):
    with pytest.raises(ConfigError, match=f"no {missing} given"):
        resolve_config(file=write(tmp_path, yaml.safe_dump(values)))


def test_a_written_configuration_reads_back_as_the_same(tmp_path):
    config = RunConfig(
        model="demo",
        data={"train": ["a.jsonl", "b.jsonl"], "roles": {"human": "user"}},
        training_config={"learning_rate": 2e-4, "max_steps": 9},
        peft_config={"r": 4, "rank_pattern": {"o_proj": 2}},
    )
    assert RunConfig(**load_yaml(write(tmp_path, dump_yaml(config)))) == config


def test_pairs_are_read_and_refused():
    assert pairs("--roles", ["human=user", "bot=assistant"]) == {"human": "user", "bot": "assistant"}
    with pytest.raises(ConfigError, match='E-CFG-105 --roles "human" is not NAME=NAME'):
        pairs("--roles", ["human"])


@pytest.mark.parametrize("name", ["phi3_mini_lora", "demo"])
def test_the_ready_made_configurations_are_valid(name):
    config = resolve_config(file=Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert config.peft_config.r == 16
    assert config.data.train


def test_the_demos_configuration_is_the_demos_recipe():
    from lorakeet.demo_task import recipe

    config = resolve_config(file=Path(__file__).parents[2] / "configs" / "demo.yaml")
    assert config.training_config == TrainingConfig(**recipe.RECIPE)
    assert config.peft_config == LoraConfig(**recipe.PEFT_RECIPE)
