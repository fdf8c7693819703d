"""The learning rate of every optimizer step, as a pure function of the step.

data in: the training configuration, the step, the steps of the run → out: a learning rate. Nothing is kept: it counts
optimizer steps alone, never micro-batches or processes, and a resumed run asks for the step it is at.
"""

import math

from lorakeet.config import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Give the number of warm-up steps: the count where one is set, else the ratio, rounded up."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Give the learning rate of optimizer step `step`, counted from 0.

    The values are those of transformers.get_scheduler, so that curves can be laid over each other; as there, the
    very first step of a warm-up has rate 0.
    """
    warmup = 0 if config.lr_scheduler_type == "constant" else warmup_steps(config, total_steps)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    match config.lr_scheduler_type:
        case "linear":
            factor = max(0.0, 1.0 - progress)
        case "cosine":
            factor = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case _:
            factor = 1.0
    return config.learning_rate * factor
