"""A LoRA adapter as a GGUF file, which llama.cpp adds to the base model's own GGUF when it loads it.

data in: a run → out: NAME-lora-TYPE.gguf. The format has one `adapter.lora.alpha` for the whole file and divides it by
each tensor's rank, so scaling·r of the first layer is written and every other layer's scaling is folded into its B:
rank patterns, alpha patterns and rsLoRA come out exactly. What the format cannot hold is refused by name.
Source of the format: ggml-org/llama.cpp, src/llama-adapter.cpp.
"""

import tempfile
from pathlib import Path

import torch

from lorakeet.errors import ExportError
from lorakeet.exports.artefact import Format, Missing, Options, Reader, Source, Written
from lorakeet.exports.gguf_families import architecture, as_llama_cpp_has_it, gguf_name
from lorakeet.exports.gguf_file import GgufFile, Planned, require_gguf
from lorakeet.exports.gguf_model import add_base_model, base_type, limits, require_architecture, write_model
from lorakeet.exports.llama_cpp import read_gguf
from lorakeet.lora.inject import lora_layers, trained_updates
from lorakeet.lora.layers import LinearLoRA
from lorakeet.lora.peft_config import read_config
from lorakeet.models import weights
from lorakeet.models.decoder import CausalLM

_TYPES = ("f32", "f16", "bf16")


def write(source: Source, directory: Path, options: Options) -> Written:
    """Write A and B of every layer."""
    require_gguf()
    require_architecture(source)
    model = source.outline()
    check_holdable(source, model)
    dtype = options.dtype or "f32"
    alpha, tensors = lora_tensors(model)
    file = directory / f"{source.name}-lora-{dtype}.gguf"
    with GgufFile(file, architecture(source.config).name) as out:
        out.metadata.add_type("adapter")
        out.metadata.add_name(source.name)
        add_base_model(out.metadata, source)
        out.metadata.add_string("adapter.type", "lora")
        out.metadata.add_float32("adapter.lora.alpha", alpha)
        out.begin(Planned(name, tuple(tensor.shape), dtype.upper()) for name, tensor in tensors.items())
        for name, tensor in tensors.items():
            out.write(name, tensor)
    note = (
        "BASE.gguf is the base model's own GGUF. Its chat template and its name decide about token ids, so take one that "
        "has the run's template; this adapter was proven over one written here from the run's base."
    )
    # It is read over a base in the base's own type, in which llama.cpp computes too.
    both = (limits(source.config, kind) for kind in (dtype, base_type(model)))
    loosest = max(both, key=lambda limit: limit.mean_kl)
    return Written(dtype, (f"llama-server -m BASE.gguf --lora {{path}}/{file.name} --jinja",), (note,), loosest)


def check_holdable(source: Source, model: CausalLM) -> None:
    """Refuse an adapter of which the format would lose something.

    Raises: ExportError E-EXP-206, which names it.
    """
    config, _ = read_config(source.adapter)
    lost = [f"the saved module {name}" for name in config.modules_to_save or ()]
    lost += [f"trained biases ({config.bias})"] if config.bias != "none" else []
    lost += ["trained lengths (DoRA)"] if config.use_dora else []
    lost += ["trained tokens (trainable_token_indices)"] if config.trainable_token_indices else []
    lost += [f"the update of {path}" for path, layer in lora_layers(model) if not isinstance(layer, LinearLoRA)]
    if model.config.tie_word_embeddings:
        lost += [f"the update of {path}" for path, _ in lora_layers(model) if path == "lm_head"]
    if lost:
        raise ExportError(
            "E-EXP-206",
            f"a LoRA in GGUF cannot hold {', '.join(lost)}",
            place=str(source.adapter),
            fix="Export the merged model with --format gguf",
        )


def lora_tensors(model: CausalLM) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the file's one alpha, and A and B of every layer, scaled so that alpha / rank makes every layer's scaling."""
    layers = dict(trained_updates(model))
    first = next(iter(layers.values()))
    alpha = first.scaling * first.peft_rank
    tensors: dict[str, torch.Tensor] = {}
    for path, layer in layers.items():
        pair, name = layer.to_peft(), f"{gguf_name(path, model.config)}.weight"
        B = as_llama_cpp_has_it(path, pair["lora_B.weight"].float(), model.config)
        tensors[f"{name}.lora_a"] = pair["lora_A.weight"].float()
        tensors[f"{name}.lora_b"] = B * (layer.scaling * layer.peft_rank / alpha)
    return alpha, tensors


def read(source: Source, directory: Path) -> Reader | Missing:
    """Load the file with llama.cpp, over a GGUF of the base model that is there for as long as that takes."""
    (lora,) = directory.glob("*.gguf")
    with tempfile.TemporaryDirectory(dir=directory, prefix=".base.", suffix=".part") as folder:
        base = Path(folder) / "base.gguf"
        model = weights.outline(source.base)
        write_model(source, model, base, base_type(model))
        return read_gguf(base, source.config, lora)


FORMAT = Format("gguf-adapter", "the adapter alone, for llama.cpp over the base model's GGUF", _TYPES, write, read, ".gguf")
