"""What must stay the same for a resumed run to end as if it had never stopped.

configuration, data, base model → out: an Identity, which every checkpoint keeps as names and texts and which a resumed
run is compared with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from lorakeet import dist
from lorakeet.config import LoraConfig, QuantizationConfig, RunConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.prepare import PreparedData
from lorakeet.errors import DataError

BASE_MODEL, DATA, HELD_OUT = "base model", "data", "held-out data"
SECTIONS: dict[str, type[BaseModel]] = {
    "training_config": TrainingConfig,
    "peft_config": LoraConfig,
    "quantization_config": QuantizationConfig,
}
# What may change between the parts of a resumed run without changing what is trained.
_FREE_KEYS = {
    "output_dir",
    "run_name",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "per_device_eval_batch_size",
    "bf16",
    "report_to",
    "project",
    "logging_dir",
    "load_best_model_at_end",
    "sample_prompts",
    "sample_max_new_tokens",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "fsdp",
}
DECIDED_KEYS = {"training_config.max_length"}
"""Keys that older versions left null for the model to decide; what was decided shows in the data's hashes."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides what is trained, as hashes and texts."""

    base_model: str
    dtype: str
    data: str
    held_out_data: str
    rows_of_a_step: int
    adapter: str | None
    """Of the adapter that training started from; None for a fresh one."""
    settings: dict[str, str]
    """JSON of every configuration key that matters, by `section.key`."""

    def to_dict(self) -> dict[str, str]:
        """Return names and texts, as checkpoints keep them."""
        return {
            BASE_MODEL: self.base_model,
            "dtype": self.dtype,
            DATA: self.data,
            HELD_OUT: self.held_out_data,
            "per_device_train_batch_size × gradient_accumulation_steps × processes": str(self.rows_of_a_step),
            **({} if self.adapter is None else {"adapter": self.adapter}),
            **self.settings,
        }


def run_identity(config: RunConfig, data: PreparedData, base_hash: str, dtype: str, adapter: str | None = None) -> Identity:
    """Describe a run that is about to start or to go on."""
    settings = config.training_config
    return Identity(
        base_model=base_hash,
        dtype=dtype,
        data=hash_of(data.train.examples),
        held_out_data=hash_of(data.held_out),
        rows_of_a_step=settings.per_device_train_batch_size * settings.gradient_accumulation_steps * dist.world_size(),
        adapter=adapter,
        settings={
            f"{section}.{key}": json.dumps(value, sort_keys=True)
            for section in SECTIONS
            for key, value in getattr(config, section).model_dump(mode="json").items()
            if key not in _FREE_KEYS
        },
    )


def require_recorded_rows(now: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    """Raise DataError E-DATA-198 if the rows of a run are not those of the recorded one that it repeats."""
    for name, rows in ((DATA, "the training data"), (HELD_OUT, "the held-out data")):
        if now[name] != recorded[name]:
            raise DataError(
                "E-DATA-198",
                f"{rows} is not encoded as it was: the hash of its rows is {now[name][:12]}, was {recorded[name][:12]}",
                fix="Use the versions of lorakeet and of its packages that the adapter's lorakeet.json names, or, for a data "
                "set of the hub, the revision of that day",
            )


def default_of(name: str) -> str | None:
    """Return the text of a configuration key's default: what a checkpoint means that is older than the key."""
    section, _, key = name.partition(".")
    field = SECTIONS[section].model_fields.get(key) if section in SECTIONS else None
    return None if field is None else json.dumps(field.get_default(call_default_factory=True), sort_keys=True)


def hash_of(examples: Sequence[Example]) -> str:
    """Return the hash of encoded rows: of their tokens, and of which of them are trained on."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.input_ids, example.spans)).encode())
    return digest.hexdigest()
