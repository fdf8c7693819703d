"""A weight in four bits computes what its dequantised weight does."""

import importlib.util

import torch
import torch.nn.functional as F

from lorakeet.proofs.passes import distance, largest_difference
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.subject import Subject
from lorakeet.quant import nf4
from lorakeet.quant.layers import Linear4bit

NUM_TOKENS = 48
MOST_OUTPUTS = 1024
TIMES = 4
"""How many times the rounding of a plain product ours may have: its sums run in another order."""


def four_bits_are_dequantized(subject: Subject) -> Measured | NotChecked:
    """Hold a four-bit layer of the first decoder layer against a look-up in a table and a plain product."""
    if subject.device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is None:
        return NotChecked("Install it: pip install bitsandbytes")
    layer = _quantized(subject)
    shape = layer.out_features, layer.in_features
    weight = nf4.dequantize_reference(
        layer.weight, layer.scales.float(), shape, subject.dtype, layer.quant_type, layer.blocksize
    ).to(subject.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_TOKENS, layer.in_features, generator=generator).to(subject.device, subject.dtype).requires_grad_()
    errors = {"the weight": largest_difference(layer.dequantized(subject.dtype), weight)}
    tolerances = {"the weight": 0.0}
    truth = _product(x.double(), weight.double())
    plain = _product(x, weight)
    out = layer.apply_quantized(x)
    ours = out, *torch.autograd.grad(out.float().square().sum() / 2, x)
    with torch.no_grad():  # as in generation, where the weight is never written
        one = layer.apply_quantized(x[:1])
    for name, mine, theirs, exact in zip(("the product", "its gradient"), ours, plain, truth, strict=True):
        errors[name] = distance(mine, exact)
        tolerances[name] = max(TIMES * distance(theirs, exact), torch.finfo(subject.dtype).eps)
    errors["the product of one token"] = distance(one, truth[0][:1])
    tolerances["the product of one token"] = max(TIMES * distance(plain[0][:1], truth[0][:1]), torch.finfo(subject.dtype).eps)
    return worst(errors, tolerances, f"{TIMES} × the error of a plain product, both against float64")


def _quantized(subject: Subject) -> Linear4bit:
    """Return a four-bit layer of the model or, if it has none, make one of a part of its first linear layer's weight."""
    for module in subject.model.model.layers[0].modules():
        if isinstance(module, Linear4bit):
            return module
    linear = next(m for m in subject.model.model.layers[0].modules() if isinstance(m, torch.nn.Linear))
    width = max(nf4.BLOCKSIZE, linear.in_features // nf4.BLOCKSIZE * nf4.BLOCKSIZE)
    # Narrow models are made wider, since a block is not to span rows.
    rows = F.pad(linear.weight.detach(), (0, max(0, width - linear.in_features)))[:MOST_OUTPUTS, :width]
    return Linear4bit.quantize(rows)


def _product(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return `x Wᵀ`, and the gradient of half its square as autograd computes it in these types."""
    x = x.detach().requires_grad_()
    out = F.linear(x, weight)
    return out.detach(), *torch.autograd.grad(out.to(torch.promote_types(out.dtype, torch.float32)).square().sum() / 2, x)


PROOF = Proof(
    name="four bits = dequantised",
    compares="A four-bit layer: its weight and a table look-up, bit by bit; its products and plain ones with that weight.",
    fix="Train without load_in_4bit here, or set LORAKEET_COMPILE=0 and verify again, and report your CPU or GPU",
    measure=four_bits_are_dequantized,
    is_quick=True,
)
