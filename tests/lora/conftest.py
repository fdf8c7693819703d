"""Small models that LoRA goes onto."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A layer of a toy language model, with fused projections as Phi-3 has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(width, 2 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(torch.relu(self.qkv_proj(x)))


class ToyModel(nn.Module):
    """An embedding, a list of layers and a head."""

    def __init__(self, width: int = 8, vocab: int = 20, num_layers: int = 3) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList([Block(width) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.lm_head(self.norm(hidden))


class Wrapped(nn.Module):
    """The toy model one level down, so that its layers lie in something, as in a causal language model."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self) -> None:
        super().__init__()
        self.model = ToyModel()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)


@pytest.fixture
def ids() -> Tensor:
    return torch.arange(12).view(2, 6)


@pytest.fixture
def toy() -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Wrapped()

    return build


@pytest.fixture
def fill() -> Callable[[nn.Module], nn.Module]:
    """Return everything that trains random values, as training would."""

    def apply(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        return model

    return apply
