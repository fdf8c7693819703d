"""A merged model as one GGUF file, for llama.cpp and everything built on it; no llama.cpp is needed to write it.

data in: a run → out: NAME-TYPE.gguf. What llama.cpp wants of each family says gguf_families.py. Facts of its
src/models/phi3.cpp: the sliding window is switched off whatever the file says, and LongRoPE's factors go by the context
that the user allocates, not by how long a text is.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from lorakeet.errors import ExportError
from lorakeet.exports.artefact import BRAIN, EXACT, HALF, Format, Limits, Missing, Options, Reader, Source, Written
from lorakeet.exports.chat_template import jinja_text
from lorakeet.exports.gguf_families import (
    EMBEDDING,
    OUTPUT,
    architecture,
    as_llama_cpp_has_it,
    differences,
    gguf_name,
    window_step,
)
from lorakeet.exports.gguf_file import TYPES, GgufFile, Planned, fitting_type, num_bytes, require_gguf
from lorakeet.exports.gguf_tokenizer import add_tokenizer, model_name
from lorakeet.exports.llama_cpp import read_gguf
from lorakeet.exports.merge import check_tied, merged_tensors
from lorakeet.files.durable import require_space
from lorakeet.models.config import DecoderConfig, LinearRope, Llama3Rope, LongRope, Rotary, YarnRope
from lorakeet.models.decoder import CausalLM
from lorakeet.models.rotary import llama3_factors
from lorakeet.models.weights import each_parameter, split

_LARGEST_CONTEXT = 16384
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


def write(source: Source, directory: Path, options: Options) -> Written:
    """Write the merged model, one tensor at a time."""
    require_gguf()
    require_architecture(source)
    model = source.outline()
    check_tied(model)
    dtype = options.dtype or base_type(model)
    file = directory / f"{source.name}-{dtype}.gguf"
    write_model(source, model, file, dtype)
    return Written(dtype, _commands(source, file.name), tuple(notes(source.config)), limits(source.config, dtype))


def require_architecture(source: Source) -> None:
    """Refuse a model that llama.cpp would compute otherwise.

    Raises: ExportError E-EXP-238, which says in what.
    """
    found = "; ".join(differences(source.config))
    if found:
        raise ExportError(
            "E-EXP-238",
            f"llama.cpp's {architecture(source.config).name} computes something else than this model: {found}",
            place=str(source.base),
            fix="Use another format, such as --format hf",
        )


def limits(config: DecoderConfig, dtype: str) -> Limits:
    """Return how far a file may take the model's answers; llama.cpp looks GELU up in a table of float16, whatever the file."""
    return HALF if dtype == "f32" and config.hidden_act == "gelu_pytorch_tanh" else LIMITS[dtype]


def base_type(model: CausalLM) -> str:
    """Return the type in which the model's own weights are stored."""
    return _DEFAULT[model.model.norm.weight.dtype]


def write_model(source: Source, model: CausalLM, file: Path, dtype: str) -> None:
    """Write a model whose weights are on disk, with its updates added, and the tokenizer and template of the run.

    Raises: ExportError E-EXP-204 for a tokenizer or template that cannot be written, ConfigError E-CFG-47 for a full disk.
    """
    planned = plan(model, dtype)
    require_space(file.parent, num_bytes(planned))
    with GgufFile(file, architecture(source.config).name) as out:
        add_metadata(out.metadata, source, dtype)
        add_tokenizer(out.metadata, source.tokenizer, jinja_text(source), source.config.vocab_size)
        out.begin(planned)
        for name, tensor in rope_factors(source.config):
            out.write(name, tensor)
        for name, tensor in named(model, merged_tensors(model, torch.float32, each_parameter(model, source.base))):
            out.write(name, tensor)


def named(model: CausalLM, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Turn a model's tensors into llama.cpp's: their names, q, k, v and gate, up apart or not, rows and values."""
    for name, whole in tensors:
        for stored, tensor in split(model.stored_parts, name, whole):
            path, _, leaf = stored.rpartition(".")
            yield f"{gguf_name(path, model.config)}.{leaf}", as_llama_cpp_has_it(path, tensor, model.config)


def plan(model: CausalLM, dtype: str) -> list[Planned]:
    """Return under which name, shape and type every tensor is written."""
    kind, _, kind_outside = TYPES[dtype]
    planned = [Planned(name, tuple(tensor.shape), "F32") for name, tensor in rope_factors(model.config)]
    # LoRA's matrices are added to their weights.
    own = ((name, parameter) for name, parameter in model.named_parameters() if ".lora_" not in name)
    for name, tensor in named(model, own):
        wanted = kind_outside if name.removesuffix(".weight") in (EMBEDDING, OUTPUT) else kind
        planned.append(Planned(name, tuple(tensor.shape), fitting_type(wanted, tuple(tensor.shape))))
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
    metadata.add_key_length(config.head_dim)
    metadata.add_value_length(config.head_dim)
    if config.attn_logit_softcapping is not None:
        metadata.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        metadata.add_final_logit_softcapping(config.final_logit_softcapping)
    add_windows(metadata, config)
    add_rope(metadata, config)


def add_windows(metadata: Any, config: DecoderConfig) -> None:
    """Add what each layer sees; elsewhere than in Gemma, llama.cpp has no window whatever the file says."""
    if config.family == "phi3":
        metadata.add_sliding_window(config.sliding_window or 0)
    if architecture(config).has_windows:
        metadata.add_sliding_window(config.sliding_window)
        metadata.add_sliding_window_pattern(window_step(config))


def add_rope(metadata: Any, config: DecoderConfig) -> None:
    """Add how positions become rotations; factors of single pairs are tensors, as `rope_factors` has them."""
    from gguf import RopeScalingType

    scaling = config.rope_scaling
    metadata.add_rope_dimension_count(config.rotary_dim)
    metadata.add_rope_freq_base(config.rope_theta)
    if config.local_rope_theta is not None:
        metadata.add_rope_freq_base_swa(config.local_rope_theta)
    if isinstance(scaling, LinearRope):
        metadata.add_rope_scaling_type(RopeScalingType.LINEAR)
        metadata.add_rope_scaling_factor(scaling.factor)
    elif isinstance(scaling, YarnRope):
        metadata.add_rope_scaling_type(RopeScalingType.YARN)
        metadata.add_rope_scaling_factor(scaling.factor)
        metadata.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        metadata.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        metadata.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
        # llama.cpp multiplies this by the paper's own magnitude.
        metadata.add_rope_scaling_attn_factors(scaling.attention_factor / (1 + 0.1 * math.log(scaling.factor)))
    elif config.family == "phi3":
        metadata.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        if isinstance(scaling, LongRope):
            metadata.add_rope_scaling_attn_factors(scaling.attention_factor)


def add_base_model(metadata: Any, source: Source) -> None:
    """Name the base model."""
    owner, _, name = source.base_name.rpartition("/")
    metadata.add_base_model_count(1)
    metadata.add_base_model_name(0, name or "unknown")
    if owner and not Path(source.base_name).is_absolute():
        metadata.add_base_model_organization(0, owner)
        metadata.add_base_model_repo_url(0, f"https://huggingface.co/{source.base_name}")


def rope_factors(config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Return by what the frequencies of single pairs are divided, where they are."""
    if isinstance(config.rope_scaling, Llama3Rope):
        yield "rope_freqs.weight", llama3_factors(config.rotary_dim, Rotary(config.rope_theta, config.rope_scaling))
    if isinstance(config.rope_scaling, LongRope):
        yield "rope_factors_long.weight", torch.tensor(config.rope_scaling.long_factor, dtype=torch.float32)
        yield "rope_factors_short.weight", torch.tensor(config.rope_scaling.short_factor, dtype=torch.float32)


def proven_context(config: DecoderConfig) -> int:
    """Return the longest context at which llama.cpp computes what this decoder computes."""
    longest = config.max_position_embeddings
    if config.rope_scaling is not None:
        longest = min(longest, config.original_max_position_embeddings)
    return longest if architecture(config).has_windows else min(longest, config.sliding_window or longest)


def context_to_ask_for(config: DecoderConfig) -> int:
    """Return the context to name in commands: memory is allocated for all of it."""
    return min(proven_context(config), _LARGEST_CONTEXT)


def _commands(source: Source, file: str) -> tuple[str, ...]:
    return (f"llama-server -m {{path}}/{file} -c {context_to_ask_for(source.config)} --jinja",)


def notes(config: DecoderConfig) -> Iterator[str]:
    if isinstance(config.rope_scaling, LongRope):
        yield (
            f"LongRoPE: give llama.cpp a context of {config.original_max_position_embeddings} tokens (-c). It chooses the "
            "rotary factors by the context it allocates, so a longer one changes short answers too; nothing is claimed there."
        )
    has_windows = architecture(config).has_windows
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings and not has_windows:
        yield (
            f"llama.cpp switches this model's sliding window off: equal up to {config.sliding_window} tokens, "
            "nothing is claimed beyond."
        )


def read(source: Source, directory: Path) -> Reader | Missing:
    """Load the file with llama.cpp."""
    (file,) = directory.glob("*.gguf")
    return read_gguf(file, source.config)


FORMAT = Format("gguf", "a merged model for llama.cpp, LM Studio and others", tuple(TYPES), write, read, suffix=".gguf")
