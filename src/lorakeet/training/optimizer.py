"""The optimizers, by the names that transformers.TrainingArguments gives them.

data in: a model with adapters, the training configuration → out: a torch optimizer, its parameters in groups. The
learning rate of each step comes from schedule.py; what an optimizer keeps between steps goes to state.py.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lorakeet.config import TrainingConfig
from lorakeet.errors import ConfigError, MissingExtraError, TrainingError
from lorakeet.lora.layers import Embedding

logger = logging.getLogger(__name__)

Group = dict[str, Any]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimizer that `config.optim` names, over the model's trainable parameters.

    Raises: MissingExtraError if its package is not installed; ConfigError if it does not run on this device;
    TrainingError if a parameter would train in less than float32.
    """
    groups = param_groups(model, config)
    rate = {"lr": config.learning_rate}
    betas: dict[str, Any] = {**rate, "betas": (config.adam_beta1, config.adam_beta2)}
    match config.optim:
        case "adamw_torch" | "adamw_torch_fused":
            # Loshchilov & Hutter 2019, arXiv:1711.05101; one fused kernel updates all parameters.
            return torch.optim.AdamW(groups, **betas, eps=config.adam_epsilon, fused=True)
        case "adafactor":
            # Shazeer & Stern 2018, arXiv:1804.04235; with the rate from outside, as transformers' Trainer runs it.
            from transformers.optimization import Adafactor

            return Adafactor(groups, **rate, scale_parameter=False, relative_step=False)
        case "lion":
            # Chen et al. 2023, arXiv:2302.06675.
            return _package("lion_pytorch", config.optim).Lion(groups, **betas)
        case "schedule_free_adamw":
            # Defazio et al. 2024, arXiv:2405.15682. Warm-up comes with the rate, as for every other optimizer.
            kind = _package("schedulefree", config.optim).AdamWScheduleFree
            optimizer = kind(groups, **betas, eps=config.adam_epsilon)
            optimizer.train()
            return optimizer
        case name:
            return _bitsandbytes(name, groups, betas, config.adam_epsilon)


def param_groups(model: nn.Module, config: TrainingConfig) -> list[Group]:
    """Sort the trainable parameters by what is done to them: which weight decay, which part of the learning rate.

    Biases and norms do not decay. With `loraplus_lr_ratio`, lora_B, biases and norms have that many times the learning rate of
    lora_A, and adapters of embeddings have `loraplus_lr_embedding`, grouped as peft.optimizers groups them.
    Each group's `lr_ratio` is its rate over that of the schedule. Source: LoRA+, Hayou et al. 2024, arXiv:2402.12354.
    """
    plus, of_embeddings = config.loraplus_lr_ratio, set()
    if plus is not None:
        of_embeddings = {p for part in model.modules() if isinstance(part, Embedding) for p in part.parameters()}
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        if param.dtype != torch.float32:
            raise TrainingError(
                "E-TRAIN-16",
                f"{name} trains in {str(param.dtype).removeprefix('torch.')}, where small updates round away",
                fix="Train with bf16: false, or adapters alone",
            )
        ratio = 1.0
        if param in of_embeddings:
            ratio = config.loraplus_lr_embedding / config.learning_rate
        elif plus is not None and ("lora_B" in name or param.ndim < 2):
            ratio = plus
        found.setdefault((ratio, config.weight_decay if param.ndim > 1 else 0.0), []).append(param)
    return [
        {"params": params, "weight_decay": decay, "lr_ratio": ratio, "lr": config.learning_rate * ratio}
        for (ratio, decay), params in found.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group to its part of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]


@contextmanager
def inference_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Hold the weights that are to be used in the parameters, and put those that are trained back, to the bit.

    Only a schedule-free optimizer tells the two apart: it takes gradients at one point and returns the average of
    others. Its own way back, `train()`, rounds, and an evaluation must not change the training.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    trained = [param.detach().clone() for param in params]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for param, value in zip(params, trained, strict=True):
                param.copy_(value)


def _bitsandbytes(name: str, groups: list[Group], betas: dict[str, Any], epsilon: float) -> torch.optim.Optimizer:
    """Build AdamW or Lion with states of 8 bits, or states that may leave a GPU's memory (Dettmers et al. 2022,
    arXiv:2110.02861)."""
    library = _package("bitsandbytes", name)
    device = groups[0]["params"][0].device
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            "E-CFG-141", f'"{name}" does not run on {device.type}', place="training_config.optim", fix="Use adamw_torch"
        )
    is_paged = name.startswith("paged_")
    if is_paged and device.type == "cpu":
        logger.info("%s: nothing is paged, the optimizer's state is in main memory anyway.", name)
    options = {**betas, "optim_bits": 8 if "8bit" in name else 32, "is_paged": is_paged and device.type == "cuda"}
    if "lion" in name:
        return library.optim.Lion(groups, **options)
    return library.optim.AdamW(groups, **options, eps=epsilon)


def _package(name: str, optim: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError.of(name.replace("_", "-"), "optimizers", f"optim: {optim}") from None
