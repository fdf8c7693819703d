"""PiSSA: adapters that start with the principal part of their weight, which the frozen weight then lacks.

data in: a fresh LoRA layer → out: the same layer computing the same, its A and B the largest singular values and
vectors of the weight, its weight the rest. Training then moves the directions that matter most.

What is saved belongs to the weight as it was: the difference of the pairs after and before training, which is plain
LoRA of rank 2r (`A B − A₀ B₀`). So the adapter loads onto the original model anywhere, and never onto a wrong one.

Source: Meng et al. 2024, arXiv:2404.02948; reference implementation: PEFT's `pissa_init`.
"""

import torch
from torch import Tensor

from lorakeet.errors import ConfigError
from lorakeet.lora.layers import Linear, LinearLoRA
from lorakeet.lora.merging import MergeableLayer


def check_principal_part(layer: MergeableLayer, path: str) -> None:
    """Refuse layers that have no principal part of rank r to start with; before anything is changed.

    Raises: ConfigError, E-CFG-172, if the layer is no linear layer with a 16- or 32-bit weight, or r is too large.
    """
    if type(layer) is not Linear:
        raise ConfigError(
            "E-CFG-172",
            f"PiSSA needs linear layers of 16 or 32 bits, and {path} is none",
            place="peft_config.init_lora_weights",
            fix="Over a quantised base use loftq; else leave the layer out",
        )
    most = min(layer.in_features, layer.out_features)
    if layer.r > most:
        raise ConfigError(
            "E-CFG-172",
            f"r is {layer.r}, more than the {most} singular values of {path}",
            place="peft_config.r",
            fix=f"Use at most {most}",
        )


def start_with_principal_part(layer: MergeableLayer, method: str) -> None:
    """Move the principal part of a layer's weight into its A and B.

    `method` is "pissa" for the exact decomposition, or "pissa_niter_N" for a randomised one with N iterations.
    """
    assert isinstance(layer, Linear)
    weight = layer.frozen_weight
    wide_OI = layer._as_stored(weight.data).float()
    iterations = method.removeprefix("pissa").removeprefix("_niter_")
    with torch.no_grad():
        if iterations:
            left_OR, values_R, right_IR = torch.svd_lowrank(wide_OI, layer.r, niter=int(iterations))
            right_RI = right_IR.T
        else:
            left, values, right = torch.linalg.svd(wide_OI, full_matrices=False)
            left_OR, values_R, right_RI = left[:, : layer.r], values[: layer.r], right[: layer.r]
        put_decomposition(layer, left_OR, values_R, right_RI)
        rest = wide_OI - layer.scaling * layer.lora_B @ layer.lora_A
        weight.data = layer._as_stored(rest.to(weight.dtype)).contiguous()
    layer.initial_pair = (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())


def put_decomposition(layer: LinearLoRA, left_OR: Tensor, values_R: Tensor, right_RI: Tensor) -> None:
    """Set A and B to the square roots of singular values, so that the update is what was decomposed.

    A layer of higher rank than the decomposition holds zeros beyond it.
    """
    r = len(values_R)
    root_R = (values_R / layer.scaling).sqrt()
    with torch.no_grad():
        layer.lora_A.zero_()[:r] = root_R[:, None] * right_RI
        layer.lora_B.zero_()[:, :r] = left_OR * root_R
