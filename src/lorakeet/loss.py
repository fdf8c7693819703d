"""Cross entropy of the supervised rows, the one loss of training and evaluation.

data in: hidden states of the rows whose next token is learned, the output head, the target ids → out: the sum of
their losses in nats, not the mean: a step divides once, by the tokens of all its micro-batches and ranks.

The head's logits never exist for more than a chunk of rows. Where a gradient is wanted, it is formed while a chunk's
logits are at hand, in the forward pass; the backward pass only scales it.

S supervised rows, D hidden width, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lorakeet.data.conversation import Example
from lorakeet.data.pack import PackedBatch, pack
from lorakeet.models.phi3 import Phi3ForCausalLM
from lorakeet.ops.compiling import compiled

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MB in fp32."""


def pack_for(model: Phi3ForCausalLM, examples: Sequence[Example]) -> PackedBatch:
    """Pack examples for a model, on its device, sharing what they begin with where that is exact and saves time.

    Not shared: on CUDA, whose kernels take whole documents; under dropout, where every copy would draw its own mask;
    and past the switch of LongRoPE, where equal tokens of a short and a long document are turned differently.
    """
    device, config = model.lm_head.weight.device, model.config
    has_dropout = model.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
    longest = max(len(example.input_ids) for example in examples)
    is_switched = config.rope_scaling is not None and longest > config.original_max_position_embeddings
    share = device.type == "cpu" and not has_dropout and not is_switched
    return pack(examples, share_prefixes=share).to(device)


def packed_loss(model: Phi3ForCausalLM, batch: PackedBatch) -> torch.Tensor:
    """Sum the losses of a packed batch's supervised tokens, as an fp32 scalar that gradients flow back from."""
    hidden_SD = model(
        batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S, parents=batch.parents
    )
    return cross_entropy_sum(hidden_SD, model.lm_head.weight, batch.targets_S)


def cross_entropy_sum(hidden_SD: torch.Tensor, head_VD: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Sum the losses of all rows, as an fp32 scalar that gradients flow back from."""
    return _HeadLoss.apply(hidden_SD, head_VD, targets_S)


def cross_entropy_reference(hidden_SD: torch.Tensor, head_VD: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Compute the same by PyTorch's own functions, keeping all logits: the slow truth for tests."""
    return F.cross_entropy(F.linear(hidden_SD, head_VD).float(), targets_S, reduction="sum")


@compiled
def _chunk_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return (torch.logsumexp(logits, -1) - logits.gather(1, targets[:, None])[:, 0]).sum()


@compiled
def _chunk_loss_and_grad(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, logits = logits.dtype, logits.float()
    log_normaliser = torch.logsumexp(logits, -1, keepdim=True)
    loss = (log_normaliser[:, 0] - logits.gather(1, targets[:, None])[:, 0]).sum()
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    return loss, (torch.exp(logits - log_normaliser) - is_target.float()).to(dtype)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_SD: torch.Tensor,
        head_VD: torch.Tensor,
        targets_S: torch.Tensor,
    ) -> torch.Tensor:
        wants_hidden, wants_head, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_SD) if wants_hidden else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        rows = max(1, CHUNK_ELEMENTS // head_VD.shape[0])
        for start in range(0, len(targets_S), rows):
            chunk = slice(start, start + rows)
            hidden, targets = hidden_SD[chunk], targets_S[chunk]
            logits = F.linear(hidden, head_VD)
            if grad_hidden is None and grad_head is None:
                total += _chunk_loss(logits, targets)
                continue
            loss, grad_logits = _chunk_loss_and_grad(logits, targets)
            total += loss
            if grad_hidden is not None:
                torch.mm(grad_logits, head_VD, out=grad_hidden[chunk])
            if grad_head is not None:
                grad_head += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_head)  # type: ignore[arg-type]
        ctx.head_dtype = head_VD.dtype  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> tuple:
        grad_hidden, grad_head = ctx.saved_tensors  # type: ignore[attr-defined]
        (scale,) = grads
        return (
            None if grad_hidden is None else (grad_hidden.float() * scale).to(grad_hidden.dtype),
            None if grad_head is None else (grad_head * scale).to(ctx.head_dtype),  # type: ignore[attr-defined]
            None,
        )
