"""What must stay the same for a resumed run to end as if it had never stopped.

configuration, data, base model → out: a text for each such thing; checkpoints keep them and compare.
"""

import hashlib
import json

from lorakeet import dist
from lorakeet.config import RunConfig
from lorakeet.data.prepare import PreparedData

# What may change between the parts of a resumed run without changing what is learned.
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


def run_identity(config: RunConfig, data: PreparedData, base_hash: str, dtype: str) -> dict[str, str]:
    """Name everything that must stay the same for a resumed run to end as if it had never stopped."""
    identity = {"base model": base_hash, "dtype": dtype}
    for name, examples in (("data", data.train.examples), ("held-out data", data.held_out)):
        digest = hashlib.sha256()
        for example in examples:
            digest.update(repr((example.input_ids, example.spans)).encode())
        identity[name] = digest.hexdigest()
    settings = config.training_config
    rows_of_a_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * dist.world_size()
    identity["per_device_train_batch_size × gradient_accumulation_steps × processes"] = str(rows_of_a_step)
    for section in ("training_config", "peft_config", "quantization_config"):
        for key, value in getattr(config, section).model_dump(mode="json").items():
            if key not in _FREE_KEYS:
                identity[f"{section}.{key}"] = json.dumps(value, sort_keys=True)
    return identity
