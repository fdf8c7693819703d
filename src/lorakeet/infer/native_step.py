"""One more token of a few sequences by the C++ step (step.cpp): all layers and the output head in one call.

data in: token ids, their positions, the cache that holds what came before, each row's adapter → out: logits, float32. Those of
a row are the same to the bit whatever other rows are computed beside it.
`NativeStep.of` says which models it handles; for all others, and for more rows, the engine runs the decoder itself, which
is the slow truth. Weights are read where they lie; whoever changes a model's layers takes a new step.

B sequences, V vocabulary.
"""

import ctypes
import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.lora import layers as lora
from lorakeet.lora import quantized as qlora
from lorakeet.lora.per_row import Adapter, Pair
from lorakeet.machine.memory import free_bytes
from lorakeet.machine.native_code import load_kernel, pointer
from lorakeet.models.decoder import Attention, CausalLM, DecoderLayer, GatedMLP, RMSNorm
from lorakeet.models.kv_cache import KVCache
from lorakeet.models.rotary import layer_tables
from lorakeet.quant import nf4
from lorakeet.quant.layers import Linear4bit, Linear8bit, QuantizedLinear

SOURCE = Path(__file__).with_name("step.cpp")
MOST_ROWS = {torch.float32: 64, torch.bfloat16: 16}
"""With more rows PyTorch's own products take over. In float32 the step is faster for all that live at once; bfloat16 is chosen
on a CPU that has units for it, which PyTorch uses and the step does not. Not measured: where they pass it."""
CANDIDATES = 64
"""Tokens whose logits are exact where the head was rounded to 8 bits."""
_NAMES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PARTS = {
    "": DecoderLayer,
    "self_attn": Attention,
    "mlp": GatedMLP,
    "input_layernorm": RMSNorm,
    "post_attention_layernorm": RMSNorm,
}
_KNOWN_FIELDS = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps", "rope_theta", "partial_rotary_factor"),
    *("rope_scaling", "sliding_window", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act"),
    *("family", "explicit_head_dim"),
}
"""Of a description; whatever else one may say must be left at its default."""
_WIDTH, _PART = 16, 64
"""What the widths of plain and of quantised layers are multiples of."""
_FLOATS, _BF16, _FOUR_BITS, _EIGHT_BITS = range(4)


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "absmax", "indices", "table", "nested_absmax", "offset", "code")),
        *((name, ctypes.c_int32) for name in ("kind", "out_features", "in_features", "blocksize")),
    )


class _Pair(ctypes.Structure):
    _fields_ = (("A", ctypes.c_void_p), ("B", ctypes.c_void_p), ("rank", ctypes.c_int32), ("scaling", ctypes.c_float))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("norm", "mlp_norm", "keys", "values")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("head", _Matrix),
        ("norm", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_layers", "D", "F", "H", "K", "E")),
        *((name, ctypes.c_int32) for name in ("rotary_pairs", "window", "cache_is_bf16", "num_threads")),
        ("eps", ctypes.c_float),
    )


def handles(model: nn.Module) -> bool:
    """Tell whether the step computes all that this model computes: nothing of it may be of a kind that is not known here."""
    if type(model) is not CausalLM or model.model.embed_tokens.weight.device.type != "cpu":
        return False
    config = model.config
    others = [field for field in dataclasses.fields(config) if field.name not in _KNOWN_FIELDS]
    return (
        all(getattr(config, field.name) == field.default for field in others)
        and config.hidden_act == "silu"
        and all(_is_plain(layer) for layer in model.model.layers)
        and type(model.model.norm) is RMSNorm
        and all(_is_known(layer) for _, layer in _linear_layers(model))
    )


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a decoder layer is made of what the step computes, and of nothing else."""
    kinds = {name: type(module) for name, module in layer.named_modules() if not name.startswith(_NAMES)}
    return kinds == _PARTS


def _is_known(layer: Any) -> bool:
    """Tell whether a linear layer is one whose weight and update the step can read."""
    if type(layer) in (nn.Linear, lora.Linear):
        is_fit = layer.weight.dtype in (torch.float32, torch.bfloat16) and layer.weight.is_contiguous()
        multiple = _WIDTH
    else:
        is_fit = type(layer) in (Linear4bit, Linear8bit, qlora.Linear4bit, qlora.Linear8bit)
        multiple = layer.blocksize if isinstance(layer, Linear4bit) else _PART
        is_fit = is_fit and multiple % _PART == 0
    is_odd = isinstance(layer, lora.LinearLoRA) and (layer.fan_in_fan_out or layer.use_dora)
    return is_fit and not is_odd and layer.bias is None and layer.in_features % multiple == 0


def _can_round_head(model: CausalLM) -> bool:
    """Tell whether the output head may be read in 8 bits: over quantised layers, where it is most of the bytes of a step."""
    is_quantized = all(isinstance(layer, QuantizedLinear) for path, layer in _linear_layers(model) if path != "lm_head")
    return is_quantized and type(model.lm_head) is nn.Linear and model.lm_head.in_features % _PART == 0


def _linear_layers(model: CausalLM) -> Iterator[tuple[str, Any]]:
    """Return the matrices of a model in the order of the kernel's pairs."""
    for number, layer in enumerate(model.model.layers):
        for name in _NAMES:
            yield f"model.layers.{number}.{name}", layer.get_submodule(name)
    yield "lm_head", model.lm_head


class NativeStep:
    """A model as the kernel takes it."""

    @classmethod
    def of(cls, model: CausalLM) -> "NativeStep | None":
        """Describe the model to the kernel; None if that does not handle it, or cannot be had."""
        library = load_kernel(SOURCE) if handles(model) else None
        return None if library is None else cls(model, library)

    def __init__(self, model: CausalLM, library: ctypes.CDLL) -> None:
        self._model, self._library = model, library
        self._most_rows = MOST_ROWS.get(model.model.embed_tokens.weight.dtype, 16)
        self._alive: list[Tensor] = []
        """What the kernel reads and nobody else holds."""
        self._stores: Tensor | None = None
        config = model.config
        layers: Any = model.model.layers
        self._is_head_rounded = _can_round_head(model)
        matrices = iter([self._matrix(layer) for _, layer in _linear_layers(model)])
        self._layers = (_Layer * len(layers))()
        for described, layer in zip(self._layers, layers, strict=True):
            described.qkv, described.o, described.gate_up, described.down = (next(matrices) for _ in _NAMES)
            described.norm = self._floats(layer.input_layernorm.weight)
            described.mlp_norm = self._floats(layer.post_attention_layernorm.weight)
        self._described = _Model(
            layers=ctypes.cast(self._layers, ctypes.c_void_p),
            head=next(matrices),
            norm=self._floats(model.model.norm.weight),
            num_layers=len(layers),
            D=config.hidden_size,
            F=config.intermediate_size,
            H=config.num_attention_heads,
            K=config.num_key_value_heads,
            E=config.head_dim,
            rotary_pairs=config.rotary_dim // 2,
            window=layers[0].self_attn.window,
            cache_is_bf16=model.model.embed_tokens.weight.dtype == torch.bfloat16,
            num_threads=torch.get_num_threads(),
            eps=config.rms_norm_eps,
        )
        self._paths = [path for path, _ in _linear_layers(model)]
        self._own = _PairTable(self._paths, {path: pair for path, layer in _linear_layers(model) if (pair := _own_pair(layer))})
        self._tables: weakref.WeakKeyDictionary[Adapter, _PairTable] = weakref.WeakKeyDictionary()

    def takes(self, adapters: Sequence[Adapter | None]) -> bool:
        """Tell whether these rows can be computed: not too many, and none with an adapter on top of the model's own."""
        return len(adapters) <= self._most_rows and not (self._own.is_used and any(adapters))

    def logits(self, ids: Sequence[int], cache: KVCache, adapters: Sequence[Adapter | None]) -> Tensor:
        """Compute the next token's logits, (B, V), for sequences that lie in the cache's first rows, a new token each.

        `cache.begin_step` comes before it.
        """
        ends_B = torch.tensor(cache.lengths)
        positions_B = ends_B - 1
        cos_BR, sin_BR = layer_tables(self._model.config, positions_B, torch.arange(len(ids) + 1))[0]
        x_BD = self._model.model.embed_tokens(torch.tensor(ids)).float()
        logits_BV = x_BD.new_empty(len(ids), self._described.head.out_features)
        keys_MKNE = self._follow(cache)
        tables = [self._table(adapter) for adapter in adapters]
        self._library.lorakeet_step(
            ctypes.byref(self._described),
            len(ids),
            *(pointer(tensor) for tensor in (x_BD, cos_BR, sin_BR, positions_B)),
            ctypes.c_int64(keys_MKNE.stride(0)),
            ctypes.c_int64(keys_MKNE.shape[2]),
            (ctypes.c_void_p * len(ids))(*(table.address for table in tables)),
            pointer(logits_BV),
        )
        if self._is_head_rounded:
            self._settle(logits_BV, x_BD)
        return logits_BV

    def _settle(self, logits_BV: Tensor, hidden_BD: Tensor) -> None:
        """Compute the largest logits again, by the head as it is: so the likeliest tokens are those of the model."""
        candidates_BC = logits_BV.topk(min(CANDIDATES, logits_BV.shape[1])).indices
        for logits_V, candidates_C, hidden_D in zip(logits_BV, candidates_BC, hidden_BD, strict=True):
            # One row at a time: a product of several would add in another order.
            logits_V[candidates_C] = self._model.lm_head.weight[candidates_C].float() @ hidden_D

    def _follow(self, cache: KVCache) -> Tensor:
        """Note where the keys and values lie, which changes as the cache grows; return the first layer's keys."""
        first = cache.layers[0].keys_MKNE
        if first is not self._stores:
            self._stores = first
            for described, layer in zip(self._layers, cache.layers, strict=True):
                described.keys, described.values = layer.keys_MKNE.data_ptr(), layer.values_MKNE.data_ptr()
        return first

    def _floats(self, tensor: Tensor) -> int:
        """Return the address of a tensor's numbers in float32."""
        self._alive.append(tensor.detach().float().contiguous())
        return self._alive[-1].data_ptr()

    def _matrix(self, layer: Any) -> _Matrix:
        out_features, in_features = layer.out_features, layer.in_features
        matrix = _Matrix(out_features=out_features, in_features=in_features)
        weight = layer.weight.detach()
        if isinstance(layer, Linear4bit):
            matrix.kind, matrix.blocksize = _FOUR_BITS, layer.blocksize
            code, table = nf4.code_table(layer.quant_type), nf4.dynamic_map()
            matrix.code, matrix.table = code.data_ptr(), table.data_ptr()
            if layer.nested_absmax is None or layer.nested_offset is None:
                matrix.absmax = layer.absmax.data_ptr()
            else:
                matrix.indices = layer.absmax.data_ptr()
                matrix.nested_absmax, matrix.offset = layer.nested_absmax.data_ptr(), layer.nested_offset.data_ptr()
        elif isinstance(layer, Linear8bit):
            matrix.kind, matrix.absmax = _EIGHT_BITS, layer.SCB.data_ptr()
        elif layer is self._model.lm_head and self._is_head_rounded:
            weight, absmax_O = self._rounded(weight)
            matrix.kind, matrix.absmax = _EIGHT_BITS, absmax_O.data_ptr()
        else:
            weight = self._halved(weight) if weight.dtype == torch.float32 else weight
            matrix.kind = _BF16 if weight.dtype == torch.bfloat16 else _FLOATS
        self._alive.append(weight)
        matrix.weight = weight.data_ptr()
        return matrix

    def _halved(self, weight: Tensor) -> Tensor:
        """Return a float32 weight in bfloat16 if that loses nothing, as with any model published in it.

        A step is bound by reading the weights, so half the bytes are worth the memory, if there is enough.
        """
        free = free_bytes()
        if free is not None and free < 2 * weight.nbytes:
            return weight
        half = torch.empty(weight.shape, dtype=torch.bfloat16)
        is_exact = self._library.lorakeet_halve(pointer(weight), pointer(half), ctypes.c_int64(weight.numel()))
        return half if is_exact else weight

    def _rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight in eight bits, and the largest absolute value of each row."""
        (out_features, width), is_bf16 = weight.shape, weight.dtype == torch.bfloat16
        numbers, absmax_O = torch.empty(weight.shape, dtype=torch.int8), torch.empty(out_features)
        places = pointer(weight), int(is_bf16), pointer(numbers), pointer(absmax_O)
        self._library.lorakeet_to_eight_bits(*places, out_features, ctypes.c_int64(width))
        self._alive.append(absmax_O)
        return numbers, absmax_O

    def _table(self, adapter: Adapter | None) -> "_PairTable":
        if adapter is None:
            return self._own
        if adapter not in self._tables:
            self._tables[adapter] = _PairTable(self._paths, adapter.pairs)
        return self._tables[adapter]


class _PairTable:
    """The updates of all matrices as the kernel takes them; those without one have rank 0."""

    def __init__(self, paths: Sequence[str], pairs: Mapping[str, Pair]) -> None:
        assert pairs.keys() <= set(paths)
        self.is_used = bool(pairs)
        self._table, self._alive = (_Pair * len(paths))(), []
        for described, path in zip(self._table, paths, strict=True):
            if path in pairs:
                pair = pairs[path]
                matrices = [matrix.detach().float().contiguous() for matrix in (pair.lora_A_RI, pair.lora_B_OR)]
                self._alive += matrices
                described.A, described.B = (matrix.data_ptr() for matrix in matrices)
                described.rank, described.scaling = len(pair.lora_A_RI), pair.scaling

    @property
    def address(self) -> int | None:
        """Where the kernel finds the table; None if there is nothing in it."""
        return ctypes.addressof(self._table) if self.is_used else None


def _own_pair(layer: Any) -> Pair | None:
    """Return the update that a layer of the model itself has."""
    return Pair(*layer.pair()) if isinstance(layer, lora.LinearLoRA) and layer.adds_update else None
