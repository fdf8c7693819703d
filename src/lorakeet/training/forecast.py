"""What a run will take on this machine, before it begins: time of all its steps, peak memory; and what it took, beside it.

data in: a Trainer that has not begun → out: Forecast. The order of the rows is known in advance, so every step's
tokens are; two calibration steps of different size, the loop's own but without an update, tell what a step costs.
Parameters, optimizer and random state stay as they are.

Time of a pass = a + b · work, with work in matrix multiplications: every token through every layer, supervised tokens through
the head, pairs of tokens through attention. Memory = a + b · tokens, and what only comes once the run has begun:
the optimizer's moments, and the code of products of other sizes.
"""

import heapq
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakeet import dist, progress
from lorakeet.data.conversation import Example
from lorakeet.data.order import iterate_steps
from lorakeet.files import durable
from lorakeet.formatting import duration, size
from lorakeet.machine.memory import free_bytes, product_bytes_to_come
from lorakeet.machine.peak_memory import peak_during, peak_memory_bytes
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import pack_for, packed_loss
from lorakeet.training.loop import Trainer, train_step

logger = logging.getLogger(__name__)

FILE = "prediction.json"
LEAST_STEPS = 50
"""A shorter run gets no forecast: the calibration would take a tenth of it."""
SAMPLED = 256
"""Passes of an epoch that are looked at; the mean of so many is known well enough."""
MOST_TOKENS = 4096
"""Tokens of the larger calibration step."""
LONG_S = 5.0
"""A calibration step that takes longer is not repeated."""
EVALUATED_SHARE = 0.45
"""What a token costs in evaluation, which has no backward pass, of what it costs in training."""


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take."""

    steps: int
    """Optimizer steps of the whole run."""
    train_seconds: float
    """What they take, without loading, compiling and saving."""
    eval_seconds: float
    """All evaluations of the run."""
    tokens_per_second: float
    """Of training alone."""
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as plain JSON values."""
        return asdict(self) | {"seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Training and evaluation."""
        return self.train_seconds + self.eval_seconds


@dataclass(frozen=True)
class _Size:
    """What decides the cost of one forward and backward pass."""

    tokens: int
    """Tokens computed; shared beginnings count once."""
    work: float
    """Multiplications, up to a factor."""


@dataclass(frozen=True)
class _Measured:
    size: _Size
    seconds: float
    peak_bytes: int


def forecast(trainer: Trainer) -> Forecast:
    """Calibrate with two steps and predict the run."""
    progress.report("measuring steps to predict time and memory")
    model, config = trainer.model, trainer.config
    # An epoch stands for all; a run may be shorter than one.
    looked_at = min(trainer.steps_per_epoch, trainer.total_steps)
    passes = sorted(_passes(trainer, looked_at), key=_num_tokens)
    largest = heapq.nlargest(4, _passes(trainer, trainer.total_steps), key=_num_tokens)
    model.train()
    is_noisy = bool(config.neftune_noise_alpha)
    small, large = _calibrate(trainer, [passes[len(passes) // 4], largest[0]])
    tokens = sum(_num_tokens(part) for part in passes)
    # Evenly over the sorted passes.
    sampled = [_size(model, passes[i], is_noisy) for i in {i * (len(passes) - 1) // SAMPLED for i in range(SAMPLED + 1)}]
    train_s = len(passes) * statistics.fmean(_seconds(size, small, large) for size in sampled)
    eval_s = EVALUATED_SHARE * train_s / tokens * _num_tokens(trainer.held_out_examples)
    peak = max(_peak_bytes(_size(model, part, is_noisy), small, large) for part in largest)
    peak += _optimizer_bytes_to_come(trainer)
    if model.lm_head.weight.device.type == "cpu":
        num_sizes = len({size.tokens for size in sampled})
        peak += product_bytes_to_come(model.lm_head.weight.dtype, num_sizes, num_met=2)
        _warn_of_shortage(int(peak))
    return Forecast(
        steps=trainer.total_steps,
        train_seconds=trainer.total_steps / looked_at * train_s,
        eval_seconds=_num_evaluations(trainer) * eval_s,
        tokens_per_second=tokens / train_s,
        # Loading and compiling have had their own peaks by now.
        peak_memory_bytes=int(max(peak_memory_bytes(), peak)),
    )


def _num_evaluations(trainer: Trainer) -> int:
    """Count the evaluations of the run: before the first step, as often as it is configured, and after the last one."""
    every = trainer.evaluation_every
    return 0 if every is None else 1 + math.ceil(trainer.total_steps / every)


def forecast_run(run_directory: Path, trainer: Trainer) -> Forecast | None:
    """Forecast a run that is long enough and keep that in RUN/prediction.json; a resumed run reads what it began with."""
    if dist.is_shared():  # the passes of a forecast are made by one process alone
        return None
    if trainer.step == 0 and trainer.total_steps >= LEAST_STEPS:
        predicted = forecast(trainer)
        _write(run_directory, {"predicted": predicted.to_dict()})
        logger.info("Predicted: %s.", _text(predicted.train_seconds, predicted.peak_memory_bytes))
        return predicted
    file = run_directory / FILE
    if trainer.step == 0 or not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))["predicted"]
    fields = Forecast.__dataclass_fields__
    return Forecast(**{name: kept[name] for name in fields}) if kept.keys() >= fields.keys() else None


def compare_forecast(run_directory: Path, trainer: Trainer, predicted: Forecast | None) -> None:
    """Log and keep what the steps of this process took, as the whole run of them, beside the forecast."""
    steps = trainer.step - trainer.first_step
    if predicted is None or steps == 0:
        return
    seconds, memory = trainer.train_seconds / steps * trainer.total_steps, peak_memory_bytes()
    measured = {"train_seconds": seconds, "peak_memory_bytes": memory}
    _write(run_directory, {"predicted": predicted.to_dict(), "measured": measured})
    expected = _text(predicted.train_seconds, predicted.peak_memory_bytes)
    logger.info("Predicted: %s. Measured: %s.", expected, _text(seconds, memory))


def _write(run_directory: Path, content: dict[str, Any]) -> None:
    with durable.writing(run_directory):
        durable.write_file(run_directory / FILE, (json.dumps(content, indent=2) + "\n").encode())


def _text(seconds: float, memory: int) -> str:
    return f"{duration(seconds)} of training, {size(memory)} at the peak"


def _warn_of_shortage(peak: int) -> None:
    """Warn before the kernel kills the process without a message."""
    to_come, free = peak - peak_memory_bytes(), free_bytes()
    if free is not None and to_come > free:
        logger.warning(
            "Training is predicted to take %.1f GB more than now, and %.1f GB are free. Smaller passes give the same "
            "gradient: halve per_device_train_batch_size and double gradient_accumulation_steps. Or set "
            "gradient_checkpointing: true, or full.",
            to_come / 1e9,
            free / 1e9,
        )


def _passes(trainer: Trainer, num_steps: int) -> Iterator[list[Example]]:
    """Go through the micro-batches of the run's first steps, without computing anything."""
    config = trainer.config
    steps = iterate_steps(
        trainer.train_examples,
        batch_size=config.per_device_train_batch_size,
        grad_accum_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        max_steps=num_steps,
        rows=trainer.rows,
    )
    return (part for step in steps for part in step)


def _num_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.input_ids) for example in examples)


class _NoUpdate(torch.optim.Optimizer):
    """Leaves the parameters as they are."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


def _calibrate(trainer: Trainer, passes: list[list[Example]]) -> list[_Measured]:
    """Measure a small and a large pass, after one that compiles."""
    model, noise_alpha = trainer.model, trainer.config.neftune_noise_alpha or 0.0
    is_noisy, optimizer = bool(noise_alpha), _NoUpdate(list(trainer.named_params.values()), {})

    def work(part: list[Example]) -> None:
        batch = pack_for(model, part, is_noisy=is_noisy)
        train_step(model, [batch], optimizer, math.inf, objective=partial(packed_loss, noise_alpha=noise_alpha))

    parts = [_at_most(part, limit) for part, limit in zip(passes, (MOST_TOKENS // 2, MOST_TOKENS), strict=True)]
    device = model.lm_head.weight.device
    seconds: list[list[float]] = [[], []]
    peaks = [0, 0]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        work(parts[0])
        for turn in range(2):
            for i, part in enumerate(parts):
                start = time.perf_counter()
                peak = peak_during(partial(work, part))
                seconds[i].append(time.perf_counter() - start)
                if turn == 0:  # later the small pass finds the memory that the large one has left
                    peaks[i] = peak
            if sum(map(sum, seconds)) > 2 * LONG_S:
                break
    model.zero_grad(set_to_none=True)
    return [
        _Measured(_size(model, part, is_noisy), statistics.fmean(times), peak)
        for part, times, peak in zip(parts, seconds, peaks, strict=True)
    ]


def _at_most(examples: list[Example], limit: int) -> list[Example]:
    """Take the first examples up to `limit` tokens, one at least."""
    taken: list[Example] = []
    for example in examples:
        if taken and _num_tokens(taken) + len(example.input_ids) > limit:
            break
        taken.append(example)
    return taken


def _size(model: CausalLM, examples: Sequence[Example], is_noisy: bool = False) -> _Size:
    """Return what decides the cost of a pass over `examples`."""
    config, batch = model.config, pack_for(model, examples, is_noisy=is_noisy)
    width = config.num_attention_heads * config.head_dim
    qkv = width + 2 * config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (qkv + width + 3 * config.intermediate_size)
    tokens = len(batch.input_ids_T)
    pairs = int((batch.position_ids_T + 1).sum())
    work = config.num_hidden_layers * (layer * tokens + 4 * width * pairs)
    work += config.vocab_size * config.hidden_size * batch.num_supervised_tokens
    return _Size(tokens, float(work))


def _seconds(size: _Size, small: _Measured, large: _Measured) -> float:
    """Read the seconds of a pass off the line through the two measured ones."""
    offset, slope = _fit((small.size.work, large.size.work), (small.seconds, large.seconds))
    if slope == 0 or offset < 0:  # too alike, or disturbed: then only the ratio is known
        offset, slope = 0.0, (small.seconds + large.seconds) / (small.size.work + large.size.work)
    return offset + slope * size.work


def _peak_bytes(size: _Size, small: _Measured, large: _Measured) -> float:
    """Read the peak of a pass off the line through the two measured ones: every token keeps the same for backward."""
    offset, slope = _fit((small.size.tokens, large.size.tokens), (small.peak_bytes, large.peak_bytes))
    return offset + slope * size.tokens


def _fit(x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    """Lay a line through two points: (offset, slope). If they show no rise, the line is flat at the higher one."""
    if x[1] <= x[0] or y[1] <= y[0]:
        return max(y), 0.0
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return y[0] - slope * x[0], slope


def _optimizer_bytes_to_come(trainer: Trainer) -> int:
    """Count what the optimizer will keep, which the calibration steps did not need: by name, of every parameter."""
    if trainer.optimizer.state:
        return 0
    name = trainer.config.optim
    moments = 0 if name == "adafactor" else 1 if "lion" in name else 2
    bytes_each = moments * (1 if "8bit" in name else 4)
    return bytes_each * sum(param.numel() for param in trainer.named_params.values())
