"""The loss of supervised fine-tuning, in training and in evaluation: cross entropy of the supervised tokens.

data in: a model, examples or a packed batch of them → out: the sum of the supervised tokens' losses in nats, not the
mean: a step divides once, by the tokens of all its micro-batches and ranks. The arithmetic is `ops/cross_entropy.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from lorakeet.data.conversation import Example
from lorakeet.data.pack import PackedBatch, pack
from lorakeet.models.decoder import CausalLM
from lorakeet.ops.cross_entropy import cross_entropy_sum


def pack_for(model: CausalLM, examples: Sequence[Example], *, is_noisy: bool = False) -> PackedBatch:
    """Pack examples for a model, on its device, sharing equal beginnings if that is exact and saves time.

    On a CPU the stream is filled up to sizes that recur: oneDNN makes code for every size of every matrix
    multiplication it meets, 0.6 ms and 0.6 MB each, and there are sixty in a step.

    Not shared: on CUDA, whose kernels take whole documents; under dropout and noise on the embeddings (`is_noisy`),
    which every copy would draw for itself; and past the switch of LongRoPE, where equal tokens of a short and a long
    document are rotated differently.
    """
    device, config = model.lm_head.weight.device, model.config
    has_dropout = model.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
    longest = max(len(example.input_ids) for example in examples)
    is_switched = config.switch_length is not None and longest > config.switch_length
    if device.type != "cpu":
        return replace(pack(examples).to(device), parents=None)
    return pack(examples, share_prefixes=not (has_dropout or is_noisy or is_switched), fill_up=True)


def packed_loss(
    model: CausalLM,
    batch: PackedBatch,
    *,
    label_smoothing: float = 0.0,
    noise_alpha: float = 0.0,
    on_losses: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sum the losses of a packed batch's supervised tokens, as an fp32 scalar that gradients flow back from.

    Args:
        label_smoothing: the part of each target that is spread evenly over the vocabulary.
        noise_alpha: size of the noise on the embeddings; see `embedding_noise`.
        on_losses: called with the sum of each example's losses, fp32, in the order of the batch, without gradient.
    """
    hidden_SD = model(
        batch.input_ids_T,
        batch.position_ids_T,
        batch.cu_seqlens,
        rows_S=batch.supervised_S,
        parents=batch.parents,
        noise_TD=embedding_noise(batch, model.config.hidden_size, noise_alpha) if noise_alpha else None,
    )
    trained = [parameter for parameter in model.lm_head.parameters() if parameter.requires_grad]
    losses_S = None if on_losses is None else torch.empty(len(batch.targets_S), device=batch.targets_S.device)
    total = cross_entropy_sum(
        hidden_SD,
        model.logits,
        batch.targets_S,
        vocab_size=model.config.vocab_size,
        trained=trained,
        smoothing=label_smoothing,
        losses_S=losses_S,
    )
    if on_losses is not None and losses_S is not None:
        on_losses(sum_by_example(batch, losses_S))
    return total


def sum_by_example(batch: PackedBatch, losses_S: torch.Tensor) -> torch.Tensor:
    """Add up the losses of each example: (examples,), fp32."""
    return losses_S.new_zeros(batch.num_examples).index_add_(0, batch.owners_S, losses_S)


def embedding_noise(batch: PackedBatch, hidden_size: int, alpha: float) -> torch.Tensor:
    """Draw uniform noise within ±alpha / sqrt(L D), L each document's own length: (T, D), fp32.

    Source: NEFTune, Jain et al. 2023, arXiv:2310.05914.
    """
    lengths_D = batch.cu_seqlens.diff()
    sizes_D = alpha / (lengths_D * hidden_size).sqrt()
    sizes_T = torch.repeat_interleave(sizes_D, lengths_D, output_size=len(batch.input_ids_T))
    return (2 * torch.rand(len(sizes_T), hidden_size, device=sizes_T.device) - 1) * sizes_T[:, None]
