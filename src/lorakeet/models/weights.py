"""Weights between a Hugging Face directory and the decoder: load, save, and distinguish one base model from another.

data in: a directory with model.safetensors, or shards and their index → out: a module with its parameters.
Everything is checked before the first tensor is read: names and shapes must be exactly the model's. One tensor at
a time is in flight, so a model costs its own size and nothing more. Pickle checkpoints are refused, never opened.
Does not look for models by name (`registry`) and does not look for NaN.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lorakeet.errors import ModelError
from lorakeet.files.cache import remembered_hash
from lorakeet.files.durable import new_file, write_file
from lorakeet.files.safetensors_file import SafetensorsWriter, TensorEntry, mapped, read_header
from lorakeet.formatting import size
from lorakeet.machine.memory import free_bytes
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import config_to_json, load_config, read_json, stored_parts
from lorakeet.models.decoder import CausalLM

Parts = Mapping[str, Mapping[str, int]]
"""As `stored_parts` of a model: {fused layer: {its parts in the checkpoint: their rows}}."""
Put = Callable[[nn.Module, Iterable[str], torch.Tensor], torch.Tensor]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DEFAULT_SHARD_BYTES = 5 * 10**9
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_NUM_NAMED = 5
_DERIVED = ".rotary_emb.inv_freq"
"""What old checkpoints of Llama hold beside the weights, and the decoder computes."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_FLOATS_TEXT = "float32, float16 or bfloat16"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a directory, found and checked but not read."""

    files: Mapping[Path, Mapping[str, TensorEntry]]

    def entries(self) -> dict[str, TensorEntry]:
        """Return all tensors by name."""
        return {name: entry for entries in self.files.values() for name, entry in entries.items()}


def load_model(directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> CausalLM:
    """Build the model of a directory, in evaluation mode; without `dtype` in the type of its weights.

    Raises: ModelError if the directory is no Phi-3 model or its weights are not exactly the model's.
    """
    directory = Path(directory)
    config = load_config(directory)
    with torch.device("meta"):
        model = CausalLM(config)
    load_weights(model, directory, dtype=dtype, device=device)
    return model.eval()


def outline(directory: Path) -> CausalLM:
    """Build the model of a directory with its weights left on disk: on the meta device, in the type that most of them have.

    Raises: ModelError, as `load_model`.
    """
    with torch.device("meta"):
        model = CausalLM(load_config(directory))
    entries = open_checkpoint(directory).entries()
    _check_names_and_shapes(entries, model, str(directory))
    return model.to(_main_dtype(entries)).eval()


def each_parameter(model: CausalLM, directory: Path) -> Iterator[tuple[str, nn.Parameter]]:
    """Walk over the parameters by name; one on the meta device has its value from `directory` until the next one's turn.

    Raises: ModelError E-MODEL-107 if a weight that is tied is stored twice and differs.
    """
    all_names = aliases(model)
    with contextlib.ExitStack() as stack:
        places = {
            name: (mapping, entry)
            for file, entries in open_checkpoint(directory).files.items()
            for mapping in [stack.enter_context(mapped(file))]
            for name, entry in entries.items()
        }
        for name, unread in list(model.named_parameters()):
            if not unread.is_meta:
                yield name, unread
                continue
            parts = stored_names(model.stored_parts, name)
            stored = parts if len(parts) > 1 else [alias for alias in all_names[name] if alias in places]
            values = [mapping.read(entry) for mapping, entry in (places[one] for one in stored)]
            values = [torch.cat(values)] if len(parts) > 1 else values
            if not all(torch.equal(values[0], value) for value in values[1:]):
                raise _differing(all_names[name], str(directory))
            yield name, put_parameter(model, all_names[name], values[0].to(unread.dtype))
            put_parameter(model, all_names[name], unread.data)


def load_weights(
    model: CausalLM,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    put: Put | None = None,
) -> None:
    """Set every parameter of `model` (built on the meta device, best) its value from `directory`.

    Parameters that are one tensor in the model stay one; the checkpoint may name it once or, if equal, repeatedly.
    `put` is called with the model, all names of a parameter and its value, and gives the parameter it has put there.

    Raises: ModelError, before anything is loaded, if files are broken, names and shapes differ, or the whole model
    has no room in memory.
    """
    checkpoint = open_checkpoint(Path(directory))
    entries = checkpoint.entries()
    all_names = aliases(model)
    _check_names_and_shapes(entries, model, str(directory))
    dtype = dtype or _main_dtype(entries)
    if put is None and torch.device(device).type == "cpu":
        _require_memory(model, dtype, str(directory))
    loaded: dict[str, torch.Tensor] = {}
    for name, tensor in _fused(model, _read(checkpoint), dtype, device):
        if name not in loaded:
            loaded |= dict.fromkeys(all_names[name], (put or put_parameter)(model, all_names[name], tensor))
        elif not torch.equal(loaded[name], tensor):
            raise _differing(all_names[name], str(directory))


def _differing(names: Iterable[str], place: str) -> ModelError:
    return ModelError(
        "E-MODEL-107",
        f"{' and '.join(names)} differ, but config.json says that they are one",
        place=place,
        fix="Set tie_word_embeddings to false in config.json",
    )


def _require_memory(model: nn.Module, dtype: torch.dtype, place: str) -> None:
    """Refuse weights that are more than what is free: the kernel would end the process without a word."""
    needed, free = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters()), free_bytes()
    if free is not None and needed > free:
        raise ModelError(
            "E-MODEL-186",
            f"the weights need {size(needed)} in {_short(dtype)}, and {size(free)} are free",
            place=place,
            fix="Use --load-in-4bit, or close other programs",
        )


def _read(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for file, entries in checkpoint.files.items():
        with mapped(file) as mapping:
            for name, entry in entries.items():
                if not name.endswith(_DERIVED):
                    yield name, mapping.read(entry)


def stored_names(parts: Parts, name: str) -> list[str]:
    """Return the names that a parameter of a model has in its checkpoint, those of its parts in order: mostly its own."""
    path, _, leaf = name.rpartition(".")
    owner, _, layer = path.rpartition(".")
    return [f"{owner}.{part}.{leaf}" for part in parts.get(layer, {})] or [name]


def split(parts: Parts, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Return a parameter's tensor as the checkpoint has it: under its name, or in parts under theirs."""
    names = stored_names(parts, name)
    sizes = list(parts[name.split(".")[-2]].values()) if len(names) > 1 else [len(tensor)]
    if sum(sizes) != len(tensor):  # whoever checks the shapes says so
        return iter([(name, tensor)])
    return zip(names, tensor.split(sizes), strict=True)


def _stored_shapes(model: CausalLM) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything that the model's checkpoint may hold, by name."""
    named = model.named_parameters(remove_duplicate=False)
    return {stored: tuple(part.shape) for name, whole in named for stored, part in split(model.stored_parts, name, whole.data)}


def _pieces(model: CausalLM) -> dict[str, tuple[str, slice]]:
    """Return the parameter that each part of a fused layer in the checkpoint belongs to, and its rows there."""
    pieces = {}
    for name, whole in model.named_parameters():
        end = 0
        for stored, part in split(model.stored_parts, name, whole.data):
            if stored != name:
                pieces[stored] = name, slice(end, end + len(part))
            end += len(part)
    return pieces


def _fused(
    model: CausalLM, stored: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Turn the tensors of a checkpoint into the model's parameters; the parts of a fused one go straight to their rows."""
    pieces, parameters = _pieces(model), dict(model.named_parameters())
    unfinished: dict[str, tuple[torch.Tensor, int]] = {}
    for part, tensor in stored:
        if part not in pieces:
            yield part, tensor.to(device=device, dtype=dtype)
            continue
        name, rows = pieces[part]
        shape = parameters[name].shape
        if name not in unfinished:
            unfinished[name] = torch.empty(shape, dtype=dtype, device=device), shape[0]
        whole, left = unfinished.pop(name)
        whole[rows] = tensor
        left -= rows.stop - rows.start
        if left:
            unfinished[name] = whole, left
        else:
            yield name, whole


def read_weight(directory: Path, path: str) -> torch.Tensor:
    """Read the weight of one layer, by its path, as it lies on disk: (out, in)."""
    files, parts = open_checkpoint(directory).files, []
    for name in stored_names(stored_parts(load_config(directory)), f"{path}.weight"):
        ((file, entry),) = ((file, entries[name]) for file, entries in files.items() if name in entries)
        with mapped(file) as mapping:
            parts.append(mapping.read(entry))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def put_parameter(model: nn.Module, names: Iterable[str], tensor: torch.Tensor) -> nn.Parameter:
    """Put one new parameter in all the places `names`."""
    parameter = nn.Parameter(tensor)
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        parameter.requires_grad_(module.get_parameter(leaf).requires_grad)
        setattr(module, leaf, parameter)
    return parameter


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Give, for each parameter name, all names of the same parameter."""
    names: dict[int, tuple[str, ...]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return {name: names[id(parameter)] for name, parameter in parameters.items()}


def _main_dtype(entries: Mapping[str, TensorEntry]) -> torch.dtype:
    """Return the type that most of the weights have."""
    num_bytes: dict[torch.dtype, int] = {}
    for entry in entries.values():
        num_bytes[entry.dtype] = num_bytes.get(entry.dtype, 0) + entry.num_bytes
    return max(num_bytes, key=lambda dtype: num_bytes[dtype])


def _check_names_and_shapes(entries: Mapping[str, TensorEntry], model: CausalLM, place: str) -> None:
    shapes = _stored_shapes(model)
    wanted = [names for alike in dict.fromkeys(aliases(model).values()) for names in _alternatives(model, alike)]
    missing = [names[0] for names in wanted if not any(name in entries for name in names)]
    extra = [name for name in entries if name not in shapes and not name.endswith(_DERIVED)]
    wrong = [
        f"{name} {entry.shape} for {shapes[name]}"
        for name, entry in entries.items()
        if name in shapes and entry.shape != shapes[name]
    ]
    if missing or extra or wrong:
        problems = (("missing", missing), ("not the model's", extra), ("of the wrong shape", wrong))
        raise ModelError(
            "E-MODEL-66" if missing or extra else "E-MODEL-65",
            "weights do not fit config.json: "
            + "; ".join(f"{len(names)} tensors {what} ({_some(names)})" for what, names in problems if names),
            place=place,
            fix="Take config.json and weights from the same model",
        )


def _alternatives(model: CausalLM, alike: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return what a checkpoint must hold of a parameter that goes by these names: one of each tuple."""
    parts = stored_names(model.stored_parts, alike[0])
    return [(part,) for part in parts] if len(parts) > 1 else [alike]


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def open_checkpoint(directory: Path) -> Checkpoint:
    """Find a directory's weights and check the header of every file.

    Raises: ModelError if there are none, a shard is missing or named badly, or a file is broken.
    """
    single, index = directory / WEIGHTS, directory / INDEX
    if single.exists() and index.exists():
        raise ModelError("E-MODEL-109", f"holds both {WEIGHTS} and {INDEX}", place=str(directory), fix="Remove the older one")
    if index.exists():
        return _open_shards(directory, index)
    if single.exists():
        return Checkpoint({single: _float_entries(single)})
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        raise ModelError(
            "E-MODEL-63",
            f"weights are pickle files ({_some(pickles)}), which can run code and are never opened",
            place=str(directory),
            fix="Use a version of the model with safetensors files",
        )
    raise ModelError(
        "E-MODEL-108", f"no weights: expected {WEIGHTS} or {INDEX}", place=str(directory), fix="Name a model directory"
    )


def _float_entries(file: Path) -> dict[str, TensorEntry]:
    """Read where a file's tensors lie, none of which may hold anything but floating-point numbers."""
    entries = read_header(file, ModelError).entries
    for name, entry in entries.items():
        if entry.dtype not in _FLOATS:
            raise ModelError(
                "E-MODEL-59",
                f"tensor {name} is of type {_short(entry.dtype)}; expected {_FLOATS_TEXT}",
                place=str(file),
                fix="Use the model's 16-bit or 32-bit weights",
            )
    return entries


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _open_shards(directory: Path, index: Path) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_shard("weight_map is missing", index)
    for shard in weight_map.values():
        # Names only: a path could lead out of the directory.
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise _bad_shard(f"shard {shard!r} is no plain .safetensors file name", index)
    files = {}
    for shard in sorted(set(weight_map.values())):
        file = directory / shard
        if not file.is_file():
            raise _bad_shard(f"shard {shard} is missing", index)
        files[file] = entries = _float_entries(file)
        listed = {name for name, home in weight_map.items() if home == shard}
        if listed != set(entries):
            differing = sorted(listed ^ set(entries))
            raise _bad_shard(f"{shard} and the index differ in {len(differing)} tensors ({_some(differing)})", index)
    return Checkpoint(files)


def _bad_shard(message: str, index: Path) -> ModelError:
    return ModelError("E-MODEL-73", message, place=str(index), fix="Download the model again")


def save_weights(
    state: Iterable[tuple[str, torch.Tensor]],
    directory: Path,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write config.json and the weights of a model in Hugging Face's layout, one tensor in memory at a time.

    state: (name, tensor) of the model's parameters, in any order; fused ones are split here if the checkpoint has parts.
        With tied embeddings lm_head may be there, if it equals the embedding.

    Raises: ModelError if the directory already holds weights, or names or shapes are not the model's.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(file.name for pattern in ("*.safetensors", INDEX, *_PICKLES) for file in directory.glob(pattern))
    if old:
        raise ModelError(
            "E-MODEL-48", f"already holds weights ({_some(old)})", place=str(directory), fix="Choose another directory"
        )
    shards = _plan_shards(config, dtype, max_shard_bytes)
    shapes = {name: shape for shard in shards.values() for name, shape in shard.items()}
    parts = stored_parts(config)
    stored = (piece for name, tensor in state for piece in split(parts, name, tensor))
    _write_shards(_checked(stored, shapes, config.tie_word_embeddings, str(directory)), shards, directory, dtype)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_num_bytes(shapes, dtype) for shapes in shards.values())},
            "weight_map": {name: shard for shard, shapes in shards.items() for name in shapes},
        }
        write_file(directory / INDEX, _json_bytes(index))
    write_file(directory / "config.json", _json_bytes(config_to_json(config, _short(dtype))))


def _plan_shards(config: DecoderConfig, dtype: torch.dtype, max_shard_bytes: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Spread the model's tensors over files: {file name: {tensor name: shape}}."""
    with torch.device("meta"):
        model = CausalLM(config)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    shapes = _stored_shapes(model)
    names = [stored for own, _ in model.named_parameters() for stored in stored_names(model.stored_parts, own)]
    for name in names:
        shape = shapes[name]
        if shards[-1] and _num_bytes({**shards[-1], name: shape}, dtype) > max_shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _write_shards(
    state: Iterable[tuple[str, torch.Tensor]],
    shards: Mapping[str, Mapping[str, tuple[int, ...]]],
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """Write all shards side by side, since tensors come in any order; none gets its name before all are written."""
    with contextlib.ExitStack() as stack:
        drafts = {shard: stack.enter_context(new_file(directory / shard)) for shard in shards}
        writers: dict[str, SafetensorsWriter] = {}
        for shard, shapes in shards.items():
            layout = {name: (shape, dtype) for name, shape in shapes.items()}
            writer = stack.enter_context(SafetensorsWriter(drafts[shard], layout))
            writers |= dict.fromkeys(shapes, writer)
        for name, tensor in state:
            writers[name].write(name, tensor)


def _checked(
    state: Iterable[tuple[str, torch.Tensor]], shapes: Mapping[str, tuple[int, ...]], tied: bool, place: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, each exactly once and of its shape; of a tied embedding and head, only the first to come."""
    embedding: torch.Tensor | None = None
    left = dict(shapes)
    for name, tensor in state:
        if tied and name in (EMBEDDING, HEAD):
            if embedding is not None:
                if not torch.equal(embedding, tensor):
                    raise ModelError("E-MODEL-107", f"{HEAD} differs from the {EMBEDDING} it is tied to", place=place)
                continue
            embedding, name = tensor, EMBEDDING
        if name not in left:
            what = "is given twice" if name in shapes else "is not the model's"
            raise ModelError("E-MODEL-66", f"tensor {name} {what}", place=place)
        if tuple(tensor.shape) != left.pop(name):
            raise ModelError("E-MODEL-65", f"tensor {name} is {tuple(tensor.shape)}, expected {shapes[name]}", place=place)
        yield name, tensor
    if left:
        raise ModelError("E-MODEL-66", f"{len(left)} tensors missing ({_some(list(left))})", place=place)


def _num_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def fingerprint(directory: Path) -> str:
    """Return the SHA-256 that distinguishes this base model from every other: of all weights, however they are sharded.

    It covers each tensor's name, type, shape and bytes. The whole of the weights is read (about a second for each
    gigabyte and core) and the result kept in the cache directory while no file's size or time changes.

    Raises: ModelError, as `open_checkpoint`.
    """
    checkpoint = open_checkpoint(Path(directory))
    return remembered_hash("weights", list(checkpoint.files), lambda: _fingerprint(checkpoint))


def _fingerprint(checkpoint: Checkpoint) -> str:
    lines = []
    with ThreadPoolExecutor() as pool:
        for file, entries in checkpoint.files.items():
            with mapped(file) as mapping:
                digests = pool.map(lambda entry: mapping.digest(entry, hashlib.sha256()), entries.values())
                for (name, entry), digest in zip(entries.items(), digests, strict=True):
                    lines.append(json.dumps([name, str(entry.dtype), entry.shape, digest]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
