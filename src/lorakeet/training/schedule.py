"""The learning rate of every optimizer step, as a pure function of the step.

data in: the training configuration, the step, the steps of the run → out: a learning rate. Nothing is kept: it counts
optimizer steps alone, never micro-batches or processes, and a resumed run asks for the step it is at.

The values are those of transformers.get_scheduler, so that curves can be laid over each other; as there, the very
first step of a warm-up has rate 0.
"""

import math

from lorakeet.config import TrainingConfig
from lorakeet.config.schedules import (
    Cosine,
    CosineWithMinimum,
    CosineWithMinimumAndWarmup,
    CosineWithRestarts,
    InverseSquareRoot,
    Polynomial,
    WarmupStableDecay,
)
from lorakeet.errors import ConfigError


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Return the number of warm-up steps: the count where one is set, else the ratio, rounded up."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def check_schedule(config: TrainingConfig, total_steps: int) -> None:
    """Raise ConfigError if the phases of the schedule do not fit into the run."""
    options = config.schedule
    if isinstance(options, WarmupStableDecay):
        warmup, stable = warmup_steps(config, total_steps), options.num_stable_steps or 0
        if warmup + stable + options.num_decay_steps > total_steps:
            raise ConfigError(
                "E-CFG-145",
                f"{warmup} + {stable} + {options.num_decay_steps} steps of warm-up, peak and decay are more than the "
                f"run's {total_steps}",
                place="training_config.lr_scheduler_kwargs",
                fix="Lower num_decay_steps or num_stable_steps",
            )


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0."""
    peak, options = config.learning_rate, config.schedule
    if config.lr_scheduler_type == "constant":
        return peak
    warmup = warmup_steps(config, total_steps)
    left = max(1, total_steps - warmup)
    match options:
        case WarmupStableDecay():
            return peak * _warmup_stable_decay(step, warmup, total_steps, options)
        case CosineWithMinimumAndWarmup():
            return peak * _cosine_with_minimum_and_warmup(step, warmup, left, peak, options)
        case _ if step < warmup:
            return peak * step / warmup
        case CosineWithMinimum():
            return peak * _above(_minimum(options, peak), _cosine((step - warmup) / left, options.num_cycles))
        case Cosine():
            return peak * max(0.0, _cosine((step - warmup) / left, options.num_cycles))
        case CosineWithRestarts():
            return peak * max(0.0, _cosine(options.num_cycles * (step - warmup) / left % 1.0))
        case Polynomial():
            return (peak - options.lr_end) * (1 - (step - warmup) / left) ** options.power + options.lr_end
        case InverseSquareRoot():
            timescale = options.timescale or warmup or 10_000
            return peak / math.sqrt((step - warmup + timescale) / timescale)
    return peak if config.lr_scheduler_type == "constant_with_warmup" else peak * max(0.0, 1 - (step - warmup) / left)


def _warmup_stable_decay(step: int, warmup: int, total_steps: int, options: WarmupStableDecay) -> float:
    decay, stable = options.num_decay_steps, options.num_stable_steps
    stable = total_steps - warmup - decay if stable is None else stable
    if step < warmup:
        progress = step / warmup
        rising = {"linear": progress, "cosine": 0.5 * (1 - math.cos(math.pi * progress)), "1-sqrt": 1 - math.sqrt(1 - progress)}
        return _above(options.min_lr_ratio, rising[options.warmup_type])
    if step < warmup + stable:
        return 1.0
    if step >= warmup + stable + decay:
        return options.min_lr_ratio
    progress = (step - warmup - stable) / decay
    falling = {"linear": 1 - progress, "cosine": _cosine(progress, options.num_cycles), "1-sqrt": 1 - math.sqrt(progress)}
    return max(0.0, _above(options.min_lr_ratio, falling[options.decay_type]))


def _cosine_with_minimum_and_warmup(
    step: int, warmup: int, left: int, peak: float, options: CosineWithMinimumAndWarmup
) -> float:
    """Count steps from 1, so that the first step of a warm-up changes the weights and the last one is at the minimum."""
    if step < warmup:
        if options.warmup_lr_rate is None:
            return (step + 1) / warmup
        return _above(options.warmup_lr_rate, step / max(1, warmup - 1))
    return max(0.0, _above(_minimum(options, peak), _cosine((step - warmup + 1) / left, options.num_cycles)))


def _cosine(progress: float, num_cycles: float = 0.5) -> float:
    """Go from 1 to 0 in half a cycle."""
    return 0.5 * (1 + math.cos(2 * math.pi * num_cycles * progress))


def _above(minimum: float, factor: float) -> float:
    """Squeeze 0 to 1 into `minimum` to 1."""
    return factor * (1 - minimum) + minimum


def _minimum(options: CosineWithMinimum, peak: float) -> float:
    """Return the minimum as a part of the peak."""
    return options.min_lr / peak if options.min_lr is not None else options.min_lr_rate or 0.0
