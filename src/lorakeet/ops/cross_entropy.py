"""Cross entropy over a large vocabulary, whose logits never exist for more than a chunk of rows.

data in: hidden states, the function that turns them into logits, target ids → out: the sum of the losses in nats.
Where gradients are wanted, they are formed in the forward pass, while a chunk's logits are at hand; the backward pass
only scales them. Knows no modules.

S rows, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakeet.machine.compiling import compiled

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MB in fp32."""
IGNORE_INDEX = -100
"""PyTorch's usual target of a row that has no loss."""

Head = Callable[[Tensor], Tensor]
"""Turns hidden states, (rows, D), into logits, (rows, V)."""


def cross_entropy_sum(
    hidden_SD: Tensor,
    head: Head,
    targets_S: Tensor,
    *,
    vocab_size: int,
    trained: Sequence[Tensor] = (),
    smoothing: float = 0.0,
    losses_S: Tensor | None = None,
    most_logits: int | None = None,
) -> Tensor:
    """Sum the losses of all rows, as an fp32 scalar that gradients flow back from, to `hidden_SD` and `trained`.

    Args:
        vocab_size: V, which says how many rows make a chunk.
        trained: the parameters of `head` that get a gradient: a weight, a bias, or what an adapter adds.
        smoothing: the part of each target that is spread evenly over the vocabulary.
        losses_S: fp32, filled with each row's own loss; no gradient flows through it.
        most_logits: how many logits to hold at once; CHUNK_ELEMENTS if None.
    """
    num_rows = max(1, (CHUNK_ELEMENTS if most_logits is None else most_logits) // vocab_size)
    chunks = [slice(start, start + num_rows) for start in range(0, len(targets_S), num_rows)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden_SD, *trained)):
        return _ChunkedLoss.apply(hidden_SD, head, targets_S, chunks, smoothing, losses_S, *trained)
    total = hidden_SD.new_zeros((), dtype=torch.float32)
    for chunk in chunks:
        loss, losses = _chunk_loss(head(hidden_SD[chunk]), targets_S[chunk], smoothing)
        total += loss
        _keep(losses_S, chunk, losses)
    return total


def cross_entropy_reference(hidden_SD: Tensor, head: Head, targets_S: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the same by PyTorch's own functions, keeping all logits: the slow truth for tests."""
    return F.cross_entropy(head(hidden_SD).float(), targets_S, reduction="sum", label_smoothing=smoothing)


@compiled
def _chunk_loss(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    losses = torch.logsumexp(logits, -1) - _target_logits(logits, targets, smoothing)
    losses = torch.where(targets == IGNORE_INDEX, 0.0, losses)
    return losses.sum(), losses


@compiled
def _chunk_loss_and_grad(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype, logits = logits.dtype, logits.float()
    log_normaliser = torch.logsumexp(logits, -1, keepdim=True)
    losses = log_normaliser[:, 0] - _target_logits(logits, targets, smoothing)
    is_supervised = targets != IGNORE_INDEX
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    wanted = is_target.float()
    if smoothing:
        wanted = wanted * (1 - smoothing) + smoothing / logits.shape[1]
    grad_logits = (torch.exp(logits - log_normaliser) - wanted) * is_supervised[:, None]
    losses = torch.where(is_supervised, losses, 0.0)
    return losses.sum(), losses, grad_logits.to(dtype)


def _keep(losses_S: Tensor | None, chunk: slice, losses: Tensor) -> None:
    if losses_S is not None:
        losses_S[chunk] = losses


def _target_logits(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return each row's logit of its target, mixed with the mean of all if targets are smoothed."""
    chosen = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return (1 - smoothing) * chosen + smoothing * logits.mean(-1) if smoothing else chosen


class _ChunkedLoss(torch.autograd.Function):
    """The loss and its gradients; autograd sees one chunk's head at a time, so a head of any kind gets its own."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_SD: Tensor,
        head: Head,
        targets_S: Tensor,
        chunks: Sequence[slice],
        smoothing: float,
        losses_S: Tensor | None,
        *trained: Tensor,
    ) -> Tensor:
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_SD) if hidden_SD.requires_grad else None
        # Several chunks add to these: in fp32, since small terms would round away in bf16.
        grads = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in trained]
        for chunk in chunks:
            hidden = hidden_SD[chunk].detach().requires_grad_(hidden_SD.requires_grad)
            with torch.enable_grad():
                logits = head(hidden)
            loss, losses, grad_logits = _chunk_loss_and_grad(logits.detach(), targets_S[chunk], smoothing)
            total += loss
            _keep(losses_S, chunk, losses)
            wanted = (hidden, *trained) if grad_hidden is not None else trained
            found = list(torch.autograd.grad(logits, wanted, grad_logits))
            if grad_hidden is not None:
                grad_hidden[chunk] = found.pop(0)
            for grad, part in zip(grads, found, strict=True):
                grad += part
        ctx.save_for_backward(grad_hidden, *grads)  # type: ignore[arg-type]
        ctx.dtypes = [tensor.dtype for tensor in (hidden_SD, *trained)]  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *scales: Tensor) -> tuple:
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        dtypes: list[torch.dtype] = ctx.dtypes  # type: ignore[attr-defined]
        scaled = [
            None if grad is None else (grad.float() * scales[0]).to(dtype) for grad, dtype in zip(saved, dtypes, strict=True)
        ]
        return scaled[0], None, None, None, None, None, *scaled[1:]
