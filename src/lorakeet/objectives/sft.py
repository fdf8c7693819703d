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
from lorakeet.data.pack import NO_TARGET, PackedBatch, pack
from lorakeet.machine.compiling import compiled
from lorakeet.models.decoder import CausalLM

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MB in fp32."""


def pack_for(model: CausalLM, examples: Sequence[Example], *, is_noisy: bool = False) -> PackedBatch:
    """Pack examples for a model, on its device, sharing what they begin with where that is exact and saves time.

    On a CPU the stream is filled up to sizes that recur: oneDNN makes code for every size of every product it meets,
    0.6 ms and 0.6 MB each, and there are sixty in a step.

    Not shared: on CUDA, whose kernels take whole documents; under dropout and noise on the embeddings (`is_noisy`),
    which every copy would draw for itself; and past the switch of LongRoPE, where equal tokens of a short and a long
    document are turned differently.
    """
    device, config = model.lm_head.weight.device, model.config
    has_dropout = model.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
    longest = max(len(example.input_ids) for example in examples)
    is_switched = config.rope_scaling is not None and longest > config.original_max_position_embeddings
    share = device.type == "cpu" and not has_dropout and not is_noisy and not is_switched
    return pack(examples, share_prefixes=share, fill_up=device.type == "cpu").to(device)


def packed_loss(model: CausalLM, batch: PackedBatch, *, label_smoothing: float = 0.0, noise_alpha: float = 0.0) -> torch.Tensor:
    """Sum the losses of a packed batch's supervised tokens, as an fp32 scalar that gradients flow back from.

    Args:
        label_smoothing: the part of each target that is spread evenly over the vocabulary.
        noise_alpha: size of the noise on the embeddings; see `embedding_noise`.
    """
    hidden_SD = model(
        batch.input_ids_T,
        batch.position_ids_T,
        batch.cu_seqlens,
        rows_S=batch.supervised_S,
        parents=batch.parents,
        noise_TD=embedding_noise(batch, model.config.hidden_size, noise_alpha) if noise_alpha else None,
    )
    return cross_entropy_sum(hidden_SD, model.lm_head.weight, batch.targets_S, label_smoothing)


def embedding_noise(batch: PackedBatch, hidden_size: int, alpha: float) -> torch.Tensor:
    """Draw uniform noise within ±alpha / sqrt(L D), L each document's own length: (T, D), fp32.

    Source: NEFTune, Jain et al. 2023, arXiv:2310.05914.
    """
    lengths_D = batch.cu_seqlens.diff()
    sizes_D = alpha / (lengths_D * hidden_size).sqrt()
    sizes_T = torch.repeat_interleave(sizes_D, lengths_D, output_size=len(batch.input_ids_T))
    return (2 * torch.rand(len(sizes_T), hidden_size, device=sizes_T.device) - 1) * sizes_T[:, None]


def cross_entropy_sum(
    hidden_SD: torch.Tensor, head_VD: torch.Tensor, targets_S: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Sum the losses of all rows, as an fp32 scalar that gradients flow back from."""
    return _HeadLoss.apply(hidden_SD, head_VD, targets_S, label_smoothing)


def cross_entropy_reference(
    hidden_SD: torch.Tensor, head_VD: torch.Tensor, targets_S: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Compute the same by PyTorch's own functions, keeping all logits: the slow truth for tests."""
    logits = F.linear(hidden_SD, head_VD).float()
    return F.cross_entropy(logits, targets_S, reduction="sum", label_smoothing=label_smoothing)


@compiled
def _chunk_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    logits = logits.float()
    losses = torch.logsumexp(logits, -1) - _target_logits(logits, targets, smoothing)
    return torch.where(targets == NO_TARGET, 0.0, losses).sum()


@compiled
def _chunk_loss_and_grad(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, logits = logits.dtype, logits.float()
    log_normaliser = torch.logsumexp(logits, -1, keepdim=True)
    losses = log_normaliser[:, 0] - _target_logits(logits, targets, smoothing)
    is_learned = targets != NO_TARGET
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    wanted = is_target.float()
    if smoothing:
        wanted = wanted * (1 - smoothing) + smoothing / logits.shape[1]
    grad_logits = (torch.exp(logits - log_normaliser) - wanted) * is_learned[:, None]
    return torch.where(is_learned, losses, 0.0).sum(), grad_logits.to(dtype)


def _target_logits(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Give each row's logit of its target, or the mean of all under a smoothed one."""
    chosen = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return (1 - smoothing) * chosen + smoothing * logits.mean(-1) if smoothing else chosen


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_SD: torch.Tensor,
        head_VD: torch.Tensor,
        targets_S: torch.Tensor,
        label_smoothing: float,
    ) -> torch.Tensor:
        wants_hidden, wants_head, *_ = ctx.needs_input_grad  # type: ignore[attr-defined]
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_SD) if wants_hidden else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        rows = max(1, CHUNK_ELEMENTS // head_VD.shape[0])
        for start in range(0, len(targets_S), rows):
            chunk = slice(start, start + rows)
            hidden, targets = hidden_SD[chunk], targets_S[chunk]
            logits = F.linear(hidden, head_VD)
            if grad_hidden is None and grad_head is None:
                total += _chunk_loss(logits, targets, label_smoothing)
                continue
            loss, grad_logits = _chunk_loss_and_grad(logits, targets, label_smoothing)
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
            None,
        )
