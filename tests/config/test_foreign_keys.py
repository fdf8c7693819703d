"""Every key of transformers.TrainingArguments, trl.SFTConfig and peft.LoraConfig has its place here."""

import dataclasses
import functools

import pytest

from lorakeet.config import LoraConfig, RunConfig, TrainingConfig
from lorakeet.config.foreign_keys import LORA_KEYS, TRAINING_KEYS, TRAINING_RENAMED
from lorakeet.errors import ConfigError

MODEL_CARD_TRAINING = {
    "bf16": True,
    "do_eval": False,
    "learning_rate": 5.0e-06,
    "log_level": "info",
    "logging_steps": 20,
    "logging_strategy": "steps",
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "max_steps": -1,
    "output_dir": "./checkpoint_dir",
    "overwrite_output_dir": True,
    "per_device_eval_batch_size": 4,
    "per_device_train_batch_size": 4,
    "remove_unused_columns": True,
    "save_steps": 100,
    "save_total_limit": 1,
    "seed": 0,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.2,
}
MODEL_CARD_PEFT = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "target_modules": "all-linear",
    "modules_to_save": None,
}
NOTEBOOK_TRAINING = {
    "output_dir": "./phi-3-mini-LoRA",
    "evaluation_strategy": "steps",
    "do_eval": True,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "per_device_eval_batch_size": 8,
    "log_level": "debug",
    "save_strategy": "epoch",
    "logging_steps": 100,
    "learning_rate": 1e-4,
    "fp16": False,
    "bf16": True,
    "eval_steps": 100,
    "num_train_epochs": 3,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "linear",
    "report_to": "none",
    "seed": 42,
}
NOTEBOOK_PEFT = {
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "task_type": "CAUSAL_LM",
    "target_modules": ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"],
}


@functools.cache
def defaults(name):
    """Return {key: default} of one of the field's dataclasses."""
    import peft
    import transformers
    import trl

    homes = {"TrainingArguments": transformers, "SFTConfig": trl, "LoraConfig": peft}
    found = {}
    for field in dataclasses.fields(getattr(homes[name], name)):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        else:
            found[field.name] = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    return found


OURS = [(TrainingConfig, "TrainingArguments"), (TrainingConfig, "SFTConfig"), (LoraConfig, "LoraConfig")]


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_every_key_is_known_and_its_default_accepted(ours, theirs):
    for key, default in defaults(theirs).items():
        # A key that is unknown, or stops at its own default, would raise.
        assert isinstance(ours(**{key: default}), ours)


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_a_key_is_a_field_or_accounted_for_and_never_both(ours, theirs):
    for key in defaults(theirs):
        assert (key in ours.model_fields) + (key in ours.foreign_keys) + (key in ours.renamed) == 1, key
    assert not ours.model_fields.keys() & ours.foreign_keys.keys()
    assert set(ours.renamed.values()) <= ours.model_fields.keys()


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_whole_dictionaries_of_theirs_are_accepted(ours, theirs):
    values = dict(defaults(theirs))
    values.pop("warmup_steps", None)
    if theirs != "LoraConfig":
        values["max_steps"] = -1
    assert ours(**values).notes


@pytest.mark.parametrize("key", [key for key, known in TRAINING_KEYS.items() if known.harmless is not None])
def test_what_would_change_learning_stops_with_its_name_and_a_fix(key):
    with pytest.raises(ConfigError) as error:
        TrainingConfig(**{key: "other"})
    assert error.value.code == "E-CFG-108"
    assert str(error.value).startswith(f"E-CFG-108 training_config.{key} cannot be honoured as 'other'. ")
    assert error.value.fix


@pytest.mark.parametrize("key", [key for key, known in LORA_KEYS.items() if known.harmless is not None])
def test_adapters_of_other_kinds_stop_with_their_name_and_a_fix(key):
    with pytest.raises(ConfigError, match=rf"^E-CFG-108 peft_config\.{key} cannot be honoured as "):
        LoraConfig(**{key: {"some": "thing"}})


def test_a_harmless_value_says_nothing_and_an_inert_key_says_what_stands_in_its_place():
    assert TrainingConfig(deepspeed=None, fsdp="", group_by_length=False).notes == ()
    assert TrainingConfig(overwrite_output_dir=True).notes == (
        "training_config.overwrite_output_dir is not used: an existing run is never overwritten; "
        "go on with resume, or begin again with restart",
    )
    assert LoraConfig(lora_bias=False, inference_mode=False).notes[0].startswith("peft_config.inference_mode is not ")


@pytest.mark.parametrize("value", [1, "no", 0.5, True])
def test_a_switch_is_compared_by_type_too(value):
    with pytest.raises(ConfigError, match="E-CFG-108"):
        TrainingConfig(dataloader_drop_last=value)


def test_the_model_cards_dictionaries_run_as_they_are():
    config = RunConfig(model="demo", data="demo", training_config=MODEL_CARD_TRAINING, peft_config=MODEL_CARD_PEFT)
    settings = config.training_config
    assert (settings.learning_rate, settings.warmup_ratio, settings.seed) == (5e-6, 0.2, 0)
    assert settings.eval_strategy == "no"  # do_eval is False
    assert (settings.max_steps, settings.num_train_epochs, settings.save_total_limit) == (-1, 1, 1)
    assert config.peft_config == LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05)
    given = {*MODEL_CARD_TRAINING, *MODEL_CARD_PEFT}
    fields = {*TrainingConfig.model_fields, *LoraConfig.model_fields}
    assert {note.split()[0].split(".")[1] for note in config.notes} == given - fields


def test_the_notebooks_dictionaries_run_as_they_are():
    config = RunConfig(model="demo", data="demo", training_config=NOTEBOOK_TRAINING, peft_config=NOTEBOOK_PEFT)
    settings = config.training_config
    assert (settings.eval_strategy, settings.eval_steps, settings.lr_scheduler_type) == ("steps", 100, "linear")
    assert config.peft_config.target_modules == NOTEBOOK_PEFT["target_modules"]


def test_notes_stay_with_a_configuration_that_is_copied():
    config = RunConfig(model="demo", data="demo", training_config={"log_level": "info"})
    settings = config.training_config.model_copy(update={"output_dir": "x"})
    assert config.model_copy(update={"training_config": settings}).notes == config.notes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"do_eval": False}, "no"),
        ({"do_eval": True}, "epoch"),
        ({"do_eval": False, "eval_strategy": "steps"}, "steps"),
        ({"evaluation_strategy": "epoch", "do_eval": False}, "epoch"),
    ],
)
def test_do_eval_matters_only_without_a_strategy(values, expected):
    assert TrainingConfig(**values).eval_strategy == expected


def test_earlier_names_are_those_of_fields_and_never_said_twice():
    for theirs, ours in TRAINING_RENAMED.items():
        value = "no" if ours == "eval_strategy" else 64
        assert getattr(TrainingConfig(**{theirs: value}), ours) == value
        with pytest.raises(ConfigError, match=f'E-CFG-31 training_config "{theirs}" is another name of "{ours}"'):
            TrainingConfig(**{ours: value, theirs: value})


def test_warmup_steps_below_one_are_a_part_of_all_steps():
    settings = TrainingConfig(warmup_steps=0.1)
    assert (settings.warmup_steps, settings.warmup_ratio) == (0, 0.1)


def test_enums_paths_sets_and_numbers_of_other_libraries_are_plain_values_here(tmp_path):
    import numpy
    import peft
    from transformers.trainer_utils import IntervalStrategy, SchedulerType

    settings = TrainingConfig(
        eval_strategy=IntervalStrategy.STEPS,
        lr_scheduler_type=SchedulerType.COSINE,
        output_dir=tmp_path,
        seed=numpy.int64(3),
        learning_rate=numpy.float32(0.5),
        max_steps=1e3,
        weight_decay="1e-2",
    )
    assert settings.model_dump(include={"eval_strategy", "lr_scheduler_type", "output_dir", "seed"}) == {
        "eval_strategy": "steps",
        "lr_scheduler_type": "cosine",
        "output_dir": str(tmp_path),
        "seed": 3,
    }
    assert (settings.learning_rate, settings.max_steps, settings.weight_decay) == (0.5, 1000, 0.01)
    config = LoraConfig(task_type=peft.TaskType.CAUSAL_LM, target_modules={"v_proj", "q_proj"})
    assert (config.task_type, config.target_modules) == ("CAUSAL_LM", ["q_proj", "v_proj"])
    assert TrainingConfig(seed=2**63 - 1).seed == 2**63 - 1
