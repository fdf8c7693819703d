"""PiSSA and OLoRA: adapters that start with a part of their weight, which the frozen weight then lacks.

data in: a fresh LoRA layer → out: the same layer computing the same, its A and B the largest singular values and
vectors of the weight (PiSSA) or its first orthonormal directions (OLoRA), its weight the rest.

What is saved belongs to the weight as it was: the difference of the pairs after and before training, which is plain
LoRA of rank 2r (`A B − A₀ B₀`). So the adapter loads onto the original model anywhere, and never onto a wrong one.

Source: Meng et al. 2024, arXiv:2404.02948; Büyükakyüz 2024, arXiv:2406.01775; reference implementation: PEFT's
`pissa_init` and `olora_init`.
"""

import torch
from torch import Tensor

from lorakeet.errors import ConfigError
from lorakeet.lora.layers import Linear
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.targets import Target
from lorakeet.lora.update import Update


def check_principal_part(layer: MergeableLayer, target: Target) -> None:
    """Refuse layers that have no principal part of rank r to start with; before anything is changed.

    Raises: ConfigError, E-CFG-172, if the layer is no linear layer with a 16- or 32-bit weight, or r is too large.
    """
    if type(layer) is not Linear:
        raise ConfigError(
            "E-CFG-172",
            f"PiSSA and OLoRA need linear layers of 16 or 32 bits, and {target.path} is none",
            place="peft_config.init_lora_weights",
            fix="Over a quantised base use loftq; else leave the layer out",
        )
    most = min(layer.in_features, layer.out_features if target.rows is None else len(target.rows))
    if target.r > most:
        raise ConfigError(
            "E-CFG-172",
            f"r is {target.r}, more than the {most} singular values of {target.path}",
            place="peft_config.r",
            fix=f"Use at most {most}",
        )


def start_with_principal_part(update: Update, method: str) -> None:
    """Move the principal part of the weight into A and B.

    `method` is "pissa" for the exact decomposition, "pissa_niter_N" for a randomised one with N iterations, or "olora" for
    the first rows of a QR decomposition.
    """
    wide_OI, r = update.base_rows(torch.float32), update.r
    if method == "olora":
        with torch.no_grad():
            left_OI, right_II = torch.linalg.qr(wide_OI)
            update.lora_B.copy_(left_OI[:, :r])
            update.lora_A.copy_(right_II[:r])
        take_out_of_weight(update)
        return
    iterations = method.removeprefix("pissa").removeprefix("_niter_")
    with torch.no_grad():
        if iterations:
            left_OR, values_R, right_IR = torch.svd_lowrank(wide_OI, r, niter=int(iterations))
            right_RI = right_IR.T
        else:
            left, values, right = torch.linalg.svd(wide_OI, full_matrices=False)
            left_OR, values_R, right_RI = left[:, :r], values[:r], right[:r]
        put_decomposition(update, left_OR, values_R, right_RI)
        take_out_of_weight(update)


def take_out_of_weight(update: Update) -> None:
    """Take what A and B hold out of the frozen weight, and note it, since the saved adapter belongs to the weight as it was."""
    with torch.no_grad():
        update.replace_base_rows(update.base_rows(torch.float32) - update.scaling * update.lora_B @ update.lora_A)
    update.initial_pair = (update.lora_A.detach().clone(), update.lora_B.detach().clone())


def put_decomposition(update: Update, left_OR: Tensor, values_R: Tensor, right_RI: Tensor) -> None:
    """Set A and B to the square roots of singular values, so that the update is what was decomposed.

    An update of higher rank than the decomposition holds zeros beyond it.
    """
    r = len(values_R)
    root_R = (values_R / update.scaling).sqrt()
    with torch.no_grad():
        update.lora_A.zero_()[:r] = root_R[:, None] * right_RI
        update.lora_B.zero_()[:, :r] = left_OR * root_R
