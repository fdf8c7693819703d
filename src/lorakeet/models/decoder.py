"""The Phi-3 decoder on a packed batch, under Hugging Face's names: a checkpoint's keys are this module's keys.

data in: one flat stream of token ids with their positions and document boundaries → out: hidden states, of all
tokens or only of the rows asked for. `logits` is a step of its own, since only some rows need it; no loss is computed.
Knows nothing of LoRA: its linear layers are plain `nn.Linear`, and whoever wants adapters replaces them.

Which norms, biases, windows and rotations there are is data (`models/config.py`), looked at once, where a layer is built:
the compiled graph of a model holds nothing that the model does not use. What a family's config.json means is its table in
`models/families/`.

T tokens, D hidden width, F MLP width, H query heads, K key-value heads, E head width, R rotating pairs, S rows kept.
"""

from functools import partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakeet.machine.compiling import can_compile, compile_module
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import stored_parts
from lorakeet.models.rotary import layer_tables
from lorakeet.ops.attention.packed import attention
from lorakeet.ops.attention.segments import NO_WINDOW
from lorakeet.ops.rope import rotate
from lorakeet.ops.soft_cap import soft_cap


class LayerCache(Protocol):
    """Keys and values of one layer, kept between calls."""

    def attend(
        self,
        q_THE: torch.Tensor,
        k_TKE: torch.Tensor,
        v_TKE: torch.Tensor,
        cu_seqlens: torch.Tensor,
        window: int,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Store the new keys and values and attend to all stored ones; returns (T, H * E)."""
        ...


class KeyValueCache(Protocol):
    """What generation hands in to keep keys and values between calls."""

    def layer(self, layer_idx: int) -> LayerCache:
        """Return the cache of one layer."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in fp32; of some families times 1 + weight."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.adds_one, self.eps = config.norms_add_one, config.rms_norm_eps
        self.weight = nn.Parameter(torch.zeros(width) if self.adds_one else torch.ones(width))

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        x, weight = x_TD.float(), self.weight.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + weight if self.adds_one else weight)).to(x_TD.dtype)


class Attention(nn.Module):
    """Grouped-query attention with one fused projection: rows q, then k, then v."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.window = config.window(layer) or NO_WINDOW
        self.scale, self.softcap = config.attention_scale, config.attn_logit_softcapping
        width = self.num_heads * self.head_dim
        rows = width + 2 * self.num_kv_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        self.has_qk_norm = config.has_qk_norm
        if self.has_qk_norm:
            self.q_norm, self.k_norm = RMSNorm(self.head_dim, config), RMSNorm(self.head_dim, config)

    def forward(
        self,
        x_TD: torch.Tensor,
        cos_TR: torch.Tensor | None,
        sin_TR: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        parents: torch.Tensor | None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Mix the tokens of each document; returns (T, H * E), which `o_proj` is still to be applied to."""
        H, K = self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj(x_TD).view(x_TD.shape[0], H + 2 * K, self.head_dim)
        q_THE, k_TKE = qkv[:, :H], qkv[:, H : H + K]
        if self.has_qk_norm:
            q_THE, k_TKE = self.q_norm(q_THE), self.k_norm(k_TKE)
        if cos_TR is not None and sin_TR is not None:
            q_THE, k_TKE = rotate(q_THE, cos_TR, sin_TR), rotate(k_TKE, cos_TR, sin_TR)
        # A copy: the values are kept for the backward pass, and as a view they would keep all of qkv with them.
        v_TKE = qkv[:, H + K :].contiguous()
        if cache is not None:
            return cache.attend(q_THE, k_TKE, v_TKE, cu_seqlens, self.window, self.scale, self.softcap)
        return attention(q_THE, k_TKE, v_TKE, cu_seqlens, self.window, parents, self.scale, self.softcap)


class GatedMLP(nn.Module):
    """A gated MLP with one fused projection: the gate's rows first, then the up rows."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = F.silu if config.hidden_act == "silu" else partial(F.gelu, approximate="tanh")

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = self.gate_up_proj(x_TD).chunk(2, dim=-1)
        return self.down_proj((self.activation(gate_TF.float()) * up_TF.float()).to(x_TD.dtype))


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a norm and added to what came in; in some families normalised again before that."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config)
        # In checkpoints the second of two norms goes by this name, and the second of four too.
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config)
        self.has_post_norms = config.has_post_norms
        if self.has_post_norms:
            self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config)
            self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config)

    def forward(
        self,
        x_TD: torch.Tensor,
        cos_TR: torch.Tensor | None,
        sin_TR: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        parents: torch.Tensor | None = None,
        rows_S: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Apply the layer; with `rows_S`, go on after attention with those rows alone and return only them."""
        mixed = self.self_attn(self.input_layernorm(x_TD), cos_TR, sin_TR, cu_seqlens, parents, cache)
        if rows_S is not None:
            x_TD, mixed = x_TD.index_select(0, rows_S), mixed.index_select(0, rows_S)
        if self.has_post_norms:
            x_TD = x_TD + self.post_attention_layernorm(self.self_attn.o_proj(mixed))
            return x_TD + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_TD)))
        x_TD = x_TD + self.self_attn.o_proj(mixed)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Decoder(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config)


class CausalLM(nn.Module):
    """A language model of any family that `models/families/` describes."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    """The fused layers and the names their parts have in other decoders, under vLLM's name for it."""
    stored_parts: dict[str, dict[str, int]]
    """Those of them whose parts lie apart in this model's checkpoint, by their names there, with their rows, in order."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.stored_parts = config, stored_parts(config)
        self.recompute_layers = False
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids_T: torch.Tensor,
        position_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        rows_S: torch.Tensor | None = None,
        parents: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        noise_TD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute normed hidden states, (T, D) or, with `rows_S`, (S, D).

        Args:
            position_ids_T: each token's position in its own document.
            cu_seqlens: document boundaries, (num_documents + 1,), from 0 to T.
            rows_S: indices of the tokens whose hidden state is wanted.
            parents: which segments continue which, where documents share their beginnings; see `attention`.
            noise_TD: what to add to the embeddings.
        """
        x_TD = self.model.embed_tokens(input_ids_T)
        if self.config.scales_embeddings:
            # Rounded to the embeddings' type first: so the models were trained.
            x_TD = x_TD * torch.tensor(self.config.hidden_size**0.5, dtype=x_TD.dtype, device=x_TD.device)
        if noise_TD is not None:
            x_TD = x_TD + noise_TD.to(x_TD.dtype)
        tables = layer_tables(self.config, position_ids_T, cu_seqlens)
        last = len(self.model.layers) - 1
        recompute = self.recompute_layers and torch.is_grad_enabled()
        for i, layer in enumerate(self.model.layers):
            rows, layer_cache = rows_S if i == last else None, None if cache is None else cache.layer(i)
            call = partial(checkpoint, layer, use_reentrant=False) if recompute else layer
            x_TD = call(x_TD, *tables[i], cu_seqlens, parents, rows, layer_cache)
        return self.model.norm(x_TD)

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Apply the output head, with an adapter on it if there is one: (S, D) → (S, vocab_size)."""
        logits = self.lm_head(hidden_SD)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)

    def compile_layers(self) -> None:
        """Compile the decoder layers, once for sequences of any length; without a compiler do nothing."""
        if not can_compile():
            return
        for layer in self.model.layers:
            compile_module(layer)
