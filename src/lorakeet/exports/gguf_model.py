"""A merged model as one GGUF file, for llama.cpp and everything built on it; no llama.cpp is needed to write it.

data in: a run → out: NAME-TYPE.gguf. The architecture is llama.cpp's `phi3`, which keeps q, k, v and gate, up fused and
rotates halves of a head as this decoder does, so no row is moved; SmolLM2 in this layout is written the same way.
Facts of src/models/phi3.cpp: the sliding window is switched off whatever the file says, and LongRoPE's factors go by
the context that the user allocates, not by how long a text is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorakeet.errors import ExportError
from lorakeet.exports.artefact import BRAIN, EXACT, HALF, Format, Limits, Missing, Options, Reader, Source, Written
from lorakeet.exports.chat_template import jinja_text
from lorakeet.exports.gguf_file import TYPES, GgufFile, Planned, fitting_type, num_bytes, require_gguf
from lorakeet.exports.gguf_tokenizer import add_tokenizer, model_name
from lorakeet.exports.llama_cpp import read_gguf
from lorakeet.exports.merge import check_tied, merged_tensors
from lorakeet.files.durable import require_space
from lorakeet.models.config import DecoderConfig, LongRope
from lorakeet.models.decoder import CausalLM
from lorakeet.models.weights import each_parameter

ARCHITECTURE = "phi3"
EMBEDDING, OUTPUT = "token_embd", "output"
_NAMES = {"model.embed_tokens": EMBEDDING, "model.norm": "output_norm", "lm_head": OUTPUT}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_DEFAULT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# llama.cpp multiplies in the weights' own type: activations are rounded to 16 or 8 bits too, unlike in the live model.
# Below eight bits the limits are about twice what rounding cost a model of 135 M weights, the worst there is.
LIMITS = {
    "f32": EXACT,
    "f16": HALF,
    "bf16": BRAIN,
    "q8_0": Limits(mean_kl=0.02, top1=0.95),
    "q5_1": Limits(mean_kl=0.2, top1=0.85),
    "q5_0": Limits(mean_kl=0.2, top1=0.85),
    "q4_1": Limits(mean_kl=0.3, top1=0.75),
    "q4_0": Limits(mean_kl=0.3, top1=0.75),
}


def gguf_name(path: str) -> str:
    """Return llama.cpp's name for a module of the decoder."""
    if path in _NAMES:
        return _NAMES[path]
    _, _, number, inner = path.split(".", 3)
    return f"blk.{number}.{_LAYER_NAMES[inner]}"


def write(source: Source, directory: Path, options: Options) -> Written:
    """Write the merged model, one tensor at a time."""
    require_gguf()
    require_architecture(source)
    model = source.outline()
    check_tied(model)
    dtype = options.dtype or base_type(model)
    file = directory / f"{source.name}-{dtype}.gguf"
    write_model(source, model, file, dtype)
    return Written(dtype, _commands(source, file.name), tuple(notes(source.config)), LIMITS[dtype])


def require_architecture(source: Source) -> None:
    """Refuse a model that is no Phi-3: this writes llama.cpp's `phi3` alone.

    Raises: ExportError E-EXP-238.
    """
    if source.config.family != ARCHITECTURE:
        raise ExportError(
            "E-EXP-238",
            f"GGUF files are written for the family phi3 alone, and this model is of {source.config.family}",
            place=str(source.base),
            fix="Merge the model (lorakeet merge), then convert it with llama.cpp's convert_hf_to_gguf.py",
        )


def base_type(model: CausalLM) -> str:
    """Return the type in which the model's own weights are stored."""
    return _DEFAULT[model.model.norm.weight.dtype]


def write_model(source: Source, model: CausalLM, file: Path, dtype: str) -> None:
    """Write a model whose weights are on disk, with its updates added, and the tokenizer and template of the run.

    Raises: ExportError E-EXP-204 for a tokenizer or template that cannot be written, ConfigError E-CFG-47 for a full disk.
    """
    planned = plan(model, dtype)
    require_space(file.parent, num_bytes(planned))
    with GgufFile(file, ARCHITECTURE) as out:
        add_metadata(out.metadata, source, dtype)
        add_tokenizer(out.metadata, source.tokenizer, jinja_text(source), source.config.vocab_size)
        out.begin(planned)
        for name, tensor in rope_factors(source.config):
            out.write(name, tensor)
        for name, tensor in merged_tensors(model, torch.float32, each_parameter(model, source.base)):
            out.write(f"{gguf_name(name.removesuffix('.weight'))}.weight", tensor)


def plan(model: CausalLM, dtype: str) -> list[Planned]:
    """Return under which name, shape and type every tensor is written."""
    kind, _, kind_outside = TYPES[dtype]
    planned = [Planned(name, tuple(tensor.shape), "F32") for name, tensor in rope_factors(model.config)]
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight":  # a LoRA matrix, which merging adds to its weight
            continue
        ours, shape = gguf_name(path), tuple(parameter.shape)
        wanted = kind_outside if ours in (EMBEDDING, OUTPUT) else kind
        planned.append(Planned(f"{ours}.weight", shape, fitting_type(wanted, shape)))
    return planned


def add_metadata(metadata: Any, source: Source, dtype: str) -> None:
    """Add what llama.cpp must know about the model."""
    from gguf import LlamaFileType

    config = source.config
    metadata.add_type("model")
    metadata.add_name(model_name(source.tokenizer, f"{Path(source.base_name).name} {source.name}".strip()))
    add_base_model(metadata, source)
    metadata.add_file_type(LlamaFileType[TYPES[dtype][1]])
    metadata.add_quantization_version(2)
    metadata.add_vocab_size(config.vocab_size)
    metadata.add_context_length(config.max_position_embeddings)
    metadata.add_embedding_length(config.hidden_size)
    metadata.add_feed_forward_length(config.intermediate_size)
    metadata.add_block_count(config.num_hidden_layers)
    metadata.add_head_count(config.num_attention_heads)
    metadata.add_head_count_kv(config.num_key_value_heads)
    metadata.add_layer_norm_rms_eps(config.rms_norm_eps)
    metadata.add_sliding_window(config.sliding_window or 0)
    metadata.add_rope_dimension_count(config.rotary_dim)
    metadata.add_rope_freq_base(config.rope_theta)
    metadata.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if isinstance(config.rope_scaling, LongRope):
        metadata.add_rope_scaling_attn_factors(config.rope_scaling.attention_factor)


def add_base_model(metadata: Any, source: Source) -> None:
    """Name the base model."""
    owner, _, name = source.base_name.rpartition("/")
    metadata.add_base_model_count(1)
    metadata.add_base_model_name(0, name or "unknown")
    if owner and not Path(source.base_name).is_absolute():
        metadata.add_base_model_organization(0, owner)
        metadata.add_base_model_repo_url(0, f"https://huggingface.co/{source.base_name}")


def rope_factors(config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Return LongRoPE's factors, where the model has them."""
    if isinstance(config.rope_scaling, LongRope):
        yield "rope_factors_long.weight", torch.tensor(config.rope_scaling.long_factor, dtype=torch.float32)
        yield "rope_factors_short.weight", torch.tensor(config.rope_scaling.short_factor, dtype=torch.float32)


def proven_context(config: DecoderConfig) -> int:
    """Return the longest context at which llama.cpp computes what this decoder computes."""
    longest = config.max_position_embeddings
    if config.rope_scaling is not None:
        longest = min(longest, config.original_max_position_embeddings)
    return min(longest, config.sliding_window or longest)


def _commands(source: Source, file: str) -> tuple[str, ...]:
    return (f"llama-server -m {{path}}/{file} -c {proven_context(source.config)} --jinja",)


def notes(config: DecoderConfig) -> Iterator[str]:
    if isinstance(config.rope_scaling, LongRope):
        yield (
            f"LongRoPE: give llama.cpp a context of {config.original_max_position_embeddings} tokens (-c). It chooses the "
            "rotary factors by the context it allocates, so a longer one changes short answers too; nothing is claimed there."
        )
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        yield (
            f"llama.cpp switches this model's sliding window off: equal up to {config.sliding_window} tokens, "
            "nothing is claimed beyond."
        )


def read(source: Source, directory: Path) -> Reader | Missing:
    """Load the file with llama.cpp."""
    (file,) = directory.glob("*.gguf")
    return read_gguf(file, source.config)


FORMAT = Format("gguf", "a merged model for llama.cpp, LM Studio and others", tuple(TYPES), write, read, suffix=".gguf")
