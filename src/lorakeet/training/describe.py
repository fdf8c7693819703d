"""What is about to happen, in one line, before the first step.

data in: the configuration, the Trainer, its data → out: a sentence for the person who waits.
"""

import torch

from lorakeet.config import RunConfig
from lorakeet.data.pack import packing_stats
from lorakeet.data.prepare import PreparedData
from lorakeet.quant.layers import num_weights
from lorakeet.training.loop import Trainer


def describe(config: RunConfig, trainer: Trainer, data: PreparedData) -> str:
    """Say in one line what is about to happen."""
    weight, rows = trainer.model.lm_head.weight, data.train
    trainable = sum(param.numel() for param in trainer.named_params.values())
    total = num_weights(trainer.model)
    quantization = config.quantization_config
    bits = f" over a base of {8 if quantization.load_in_8bit else 4} bits" if quantization.is_on else ""
    packed = ""
    if trainer.rows is not None:
        length = config.training_config.max_length or 0
        stats = packing_stats([len(example.input_ids) for example in rows.examples], trainer.rows, length)
        packed = f"Packed into {stats.num_rows:,} rows of {length:,} tokens, {stats.waste:.1%} of them empty. "
    where = torch.cuda.get_device_name() if weight.is_cuda else f"{torch.get_num_threads()} CPU threads"
    dtype = str(weight.dtype).removeprefix("torch.")
    return (
        f"{config.model}: {trainable:,} of {total:,} parameters train, in {dtype}{bits} "
        f"on {where}. {len(rows.examples):,} conversations with {rows.num_tokens:,} tokens, "
        f"{rows.num_supervised_tokens:,} of them trained on; "
        f"{len(data.held_out):,} held out. {packed}{trainer.total_steps:,} steps."
    )
