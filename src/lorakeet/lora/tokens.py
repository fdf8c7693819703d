"""Single tokens of an embedding, trained in full beside LoRA: rows of the weight that take the place of its own.

data in: an embedding, or a head that is tied to it, and ids of tokens → out: the same layer, frozen but for these rows. Where
embedding and head are one weight, both read the same trained rows.
Legend: N trained tokens, V vocabulary, D width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import ConfigError
from lorakeet.lora.targets import name_matches

DELTA = "token_adapter.trainable_tokens_delta"
"""The rows' name in PEFT's files; they are the rows themselves, no difference."""
_KEY = "peft_config.trainable_token_indices"


class TrainedTokens(nn.Module):
    """What embedding and head share: the frozen weight, the ids and their rows."""

    weight: Tensor
    token_ids_N: Tensor
    lora_tokens_ND: nn.Parameter

    def _take(self, module: nn.Module, token_ids: Sequence[int], rows_ND: nn.Parameter) -> None:
        """Take over the parameters of an existing layer."""
        for name, parameter in module._parameters.items():
            self._parameters[name] = parameter
        self.register_buffer("token_ids_N", torch.tensor(token_ids, device=rows_ND.device), persistent=False)
        self.lora_tokens_ND = rows_ND

    def merged_weight(self, dtype: torch.dtype) -> Tensor:
        """Return a copy of the weight with the trained rows in it."""
        with torch.no_grad():
            weight = self.weight.to(dtype, copy=True)
            return weight.index_copy_(0, self.token_ids_N.to(weight.device), self.lora_tokens_ND.to(weight))


class TokenEmbedding(TrainedTokens, nn.Embedding):
    """nn.Embedding of which single rows train."""

    slots_V: Tensor
    """For each token the place of its row among the trained ones; -1 if it is frozen."""

    def __init__(self, module: nn.Embedding, token_ids: Sequence[int], rows_ND: nn.Parameter) -> None:
        nn.Embedding.__init__(self, module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
        self._take(module, token_ids, rows_ND)
        slots_V = torch.full((module.num_embeddings,), -1, device=rows_ND.device)
        slots_V[self.token_ids_N] = torch.arange(len(token_ids), device=rows_ND.device)
        self.register_buffer("slots_V", slots_V, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Look the indices up: (...) → (..., D)."""
        frozen, slots = nn.Embedding.forward(self, x), self.slots_V[x]
        rows = F.embedding(slots.clamp(min=0), self.lora_tokens_ND).to(frozen.dtype)
        return torch.where((slots >= 0)[..., None], rows, frozen)


class TokenHead(TrainedTokens, nn.Linear):
    """nn.Linear over a vocabulary, of which single rows train."""

    def __init__(self, module: nn.Linear, token_ids: Sequence[int], rows_ND: nn.Parameter) -> None:
        nn.Linear.__init__(self, module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        self._take(module, token_ids, rows_ND)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., D) → (..., V)."""
        bias = self.bias if self.bias is None else self.bias[self.token_ids_N]
        own = F.linear(x, self.lora_tokens_ND.to(x.dtype), bias)
        return F.linear(x, self.weight, self.bias).index_copy(-1, self.token_ids_N, own)


def find_token_layers(model: nn.Module, config: LoraConfig, taken: Sequence[str]) -> dict[str, list[int]]:
    """Return the layers of which single tokens train, with their ids; first the one that PEFT saves them under.

    `taken` are layers that are adapted or trained in full. A list of ids means the input embedding.

    Raises: ConfigError E-CFG-174 for a layer or ids that cannot be so trained.
    """
    wanted = config.trainable_token_indices
    if not wanted:
        return {}
    modules = dict(model.named_modules())
    if not isinstance(wanted, Mapping):
        first = next((path for path, module in modules.items() if isinstance(module, nn.Embedding)), "")
        wanted = {first: wanted}
    found: dict[str, list[int]] = {}
    for name, ids in wanted.items():
        paths = [path for path in modules if path and name_matches(name, path)]
        if len(paths) != 1 or type(modules[paths[0]]) not in (nn.Embedding, nn.Linear):
            raise _refused(f"{name!r} is no embedding of the model", "Name one, or give a list of ids alone")
        module = modules[paths[0]]
        tied = [path for path, other in modules.items() if _weight(other) is _weight(module) and path != paths[0]]
        for path in sorted([paths[0], *tied], key=lambda path: type(modules[path]) is not nn.Embedding):
            if found.setdefault(path, ids) != ids:
                raise _refused(f"{path} is tied to {paths[0]}, and they have other ids", "Give the same ids for both, or one")
            if path in taken:
                raise _refused(f"{path} is adapted or trained in full as well", "Choose one of them")
        _check_ids(ids, len(_weight(module)), name)
    return found


def token_layers(model: nn.Module, found: Mapping[str, list[int]]) -> dict[str, TrainedTokens]:
    """Build the layers that take the places of those at the paths found, on rows that start as the weight's own."""
    rows: dict[int, nn.Parameter] = {}
    made: dict[str, TrainedTokens] = {}
    for path, ids in found.items():
        module = model.get_submodule(path)
        weight = _weight(module)
        if id(weight) not in rows:
            start = torch.zeros(len(ids), weight.shape[1]) if weight.is_meta else weight.detach()[ids].float()
            rows[id(weight)] = nn.Parameter(start)
        if isinstance(module, nn.Embedding):
            made[path] = TokenEmbedding(module, ids, rows[id(weight)])
        else:
            assert isinstance(module, nn.Linear)
            made[path] = TokenHead(module, ids, rows[id(weight)])
    return made


def saved_rows(model: nn.Module, paths: Sequence[str]) -> dict[str, Tensor]:
    """Return the trained rows of the layers at `paths` under PEFT's names; those that layers share, once."""
    rows: dict[nn.Parameter, str] = {}
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, TrainedTokens):
            rows.setdefault(module.lora_tokens_ND, path)
    return {f"{path}.{DELTA}": parameter.data for parameter, path in rows.items()}


def _weight(module: nn.Module) -> nn.Parameter:
    return module._parameters.get("weight")  # type: ignore[return-value]


def _check_ids(ids: Sequence[int], num_tokens: int, name: str) -> None:
    bad = [index for index in ids if not 0 <= index < num_tokens]
    if bad or len(set(ids)) < len(ids) or not ids:
        what = f"{bad[0]} is no token of {num_tokens}" if bad else "ids are missing or repeated"
        raise _refused(f"{name}: {what}", "List each token's id once")


def _refused(message: str, fix: str) -> ConfigError:
    return ConfigError("E-CFG-174", message, place=_KEY, fix=fix)
