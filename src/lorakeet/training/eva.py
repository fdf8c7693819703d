"""EVA's look at the run's rows, before adapters go in: each step's rows through the base model, forward alone.

data in: the base model, the configuration, the rows to train on → out: the directions of every adapted layer's inputs, which
`lora/starts/eva.py` finds, or None if the configuration asks for none.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from lorakeet import dist
from lorakeet.config import RunConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.order import iterate_steps
from lorakeet.data.pack import pack
from lorakeet.lora.starts.eva import Pass, input_directions
from lorakeet.models.decoder import CausalLM

MOST_STEPS = 256
"""Steps after which the directions are taken as they are; PEFT has no limit."""


def directions_on(model: CausalLM, config: RunConfig, examples: Sequence[Example]) -> dict[str, Tensor] | None:
    """Return the directions of the adapted layers' inputs, by path, (R, I), the same in every process; None without EVA.

    Raises: ConfigError, E-CFG-172, if there are too few tokens.
    """
    eva = config.peft_config.eva_config
    if config.peft_config.init_lora_weights != "eva" or eva is None:
        return None
    steps = _steps(examples, config.training_config)
    passes = (_pass_over(model, rows, is_masked=eva.use_label_mask) for rows in steps)
    return input_directions(model, config.peft_config, passes)


def _steps(examples: Sequence[Example], settings: TrainingConfig) -> Iterator[Sequence[Example]]:
    """Yield whole optimizer steps, so that how a step is cut and shared changes nothing, in the order of training unpacked."""
    size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * dist.world_size()
    for (rows,) in iterate_steps(examples, batch_size=size, grad_accum_steps=1, seed=settings.seed, max_steps=MOST_STEPS):
        yield rows


def _pass_over(model: CausalLM, rows: Sequence[Example], *, is_masked: bool) -> Pass:
    """Return which tokens of a step count, those of its answers or all, and the forward pass over it."""
    batch = pack(rows).to(model.lm_head.weight.device)
    own_rows = batch.supervised_S + 1 if is_masked else None  # a supervised row is the one before its token
    return own_rows, partial(model, batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens)
