"""LoRA onto an existing model, in place, and off it again.

data in: any nn.Module and a LoraConfig → out: the same module, whose named layers are LoRA layers that hold the very
weights of the layers they replace. It does not train, save or load.
"""

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.conv import adapted_conv
from lorakeet.lora.layers import Embedding, Linear, LinearLoRA
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.multihead_attention import MultiheadAttention, adapted_attention, read_linear
from lorakeet.lora.parts import Part
from lorakeet.lora.quantized import adapted_quantized
from lorakeet.lora.starts.eva import check_directions, start_with_directions
from lorakeet.lora.starts.loftq import OriginalWeight, check_quantized, start_with_rounding_error
from lorakeet.lora.starts.pissa import check_principal_part, start_with_principal_part
from lorakeet.lora.targets import Target, find_saved_modules, find_targets, is_bias, is_linear, is_transformers_conv1d
from lorakeet.lora.tokens import TrainedTokens, find_token_layers, saved_rows, token_layers
from lorakeet.lora.update import Update
from lorakeet.quant.layers import Linear4bit, Linear8bit, QuantizedLinear

Builder = Callable[[nn.Module, Target, LoraConfig], MergeableLayer]
_NOTE = "_lorakeet_injection"


@dataclass
class Injection:
    """What `inject` did to a model, for `remove` and `save_adapter`."""

    config: LoraConfig
    trainable: dict[str, bool]
    """requires_grad of every parameter, by its name before."""
    saved_modules: dict[str, nn.Module] = field(default_factory=dict)
    """The originals of modules_to_save, and of layers of which single tokens train; the model holds trained ones."""


def inject(
    model: nn.Module,
    config: LoraConfig,
    *,
    original_weight: OriginalWeight | None = None,
    input_directions: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put LoRA onto the layers that `config` names, in place, and freeze everything else.

    The layers keep their weight and bias objects. The adapters are float32, drawn from torch's global generator, and
    start as an update of zero, so the outputs stay as they were. Merging is explicit: eval() does not merge.
    `original_weight` gives a quantised layer's weight, by its path, as it was before; LoftQ alone needs it.
    `input_directions` are those of each layer's inputs, by its path, as `starts.eva` finds them; EVA alone needs them.

    Raises:
        ConfigError: E-CFG-42 if a name matches nothing, E-CFG-161 if there is LoRA already, E-CFG-162 to 165 for
            a layer that cannot have it, E-CFG-172 for one that cannot start as asked. The model is then as it was.
    """
    if any(True for _ in lora_layers(model)):
        raise ConfigError("E-CFG-161", "the model has LoRA already", place="inject", fix="Call lorakeet.remove(model) first")
    targets = find_targets(model, config)
    saved = find_saved_modules(model, config)
    _refuse_both(targets, saved)
    new = [(module, own, _build(model, module, own, config)) for module, own in _by_module(targets)]
    _check_starts(new, config, original_weight, input_directions)
    tokens = find_token_layers(model, config, [*saved, *(target.path for target, _ in targets)])
    injection = Injection(config, {name: parameter.requires_grad for name, parameter in model.named_parameters()})
    model.requires_grad_(False)
    for module, own, layer in new:
        layer.adopt(module, own[0].scaling)
        _start(layer, own[0].path, config, original_weight, input_directions)
        _replace(model, module, layer)
    copies: dict[int, nn.Parameter] = {}
    for path, module in saved.items():
        injection.saved_modules[path] = module
        _replace(model, module, _trained_copy(module, copies))
    for path, layer_of_tokens in token_layers(model, tokens).items():
        injection.saved_modules[path] = model.get_submodule(path)
        _replace(model, injection.saved_modules[path], layer_of_tokens)
    _unfreeze_biases(model, config)
    # Past nn.Module's own __setattr__: the note holds modules that are no part of the model.
    object.__setattr__(model, _NOTE, injection)
    return model


def injection_of(model: nn.Module) -> Injection | None:
    """Return what `inject` noted on the model, or None."""
    return getattr(model, _NOTE, None)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, MergeableLayer]]:
    """Walk over the LoRA layers of a model, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, MergeableLayer) and module.r > 0:
            yield path, module


def remove(model: nn.Module) -> nn.Module:
    """Take LoRA off again, in place: the layers, weights, requires_grad and modules_to_save from before `inject`.

    Biases that were trained along keep their values. Layers built by hand become the plain layers they extend.

    Raises:
        AdapterError: E-ADPT-69 if there is no LoRA, E-ADPT-113 if the weights are not the base's (PiSSA).
    """
    layers = _require_layers(model)
    for _, update in trained_updates(model):
        update.require_own_weight()
    for _, layer in layers:
        layer.unmerge()
    injection = injection_of(model)
    for path, module in injection.saved_modules.items() if injection is not None else ():
        trained = model.get_submodule(path)
        _replace(model, trained, module.train(trained.training))
    return _take_off(model)


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Add every update to its weight for good, and put the plain layers back, in place; keep trained modules_to_save.

    Raises:
        AdapterError: E-ADPT-69 if there is no LoRA, E-ADPT-108 for a weight that other layers share, E-ADPT-109
            for an update that does not fit into its weight.
    """
    layers = _require_layers(model)
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{path}.{name}")
    for path, layer in layers:
        shared = owners[id(layer.frozen_weight)]
        if len(shared) > 1:
            raise AdapterError(
                "E-ADPT-108",
                f"the weight of {path} is tied ({', '.join(shared)}), so merging would change the other layer too",
                fix="Untie the weights first, or keep the adapter unmerged",
            )
    for _, layer in layers:
        layer.check_mergeable()
    # One layer after the other, so that the model is never in memory twice.
    for _, layer in layers:
        layer.merge()
        layer.forget_unmerged()
    _merge_tokens(model)
    return _take_off(model)


def _merge_tokens(model: nn.Module) -> None:
    """Put the trained rows of single tokens into copies of their weights; those that are tied stay tied."""
    injection = injection_of(model)
    merged: dict[int, nn.Parameter] = {}
    for path, plain in injection.saved_modules.items() if injection is not None else ():
        module = model.get_submodule(path)
        if isinstance(module, TrainedTokens):
            weight = module.weight
            plain._parameters["weight"] = merged.setdefault(id(weight), nn.Parameter(module.merged_weight(weight.dtype)))
            _replace(model, module, plain.train(module.training))


def trained_updates(model: nn.Module) -> Iterator[tuple[str, Update]]:
    """Walk over the trained updates, with the paths that the model's checkpoint has for what they belong to."""
    for path, layer in lora_layers(model):
        yield from layer.updates(path).items()


def _require_layers(model: nn.Module) -> list[tuple[str, MergeableLayer]]:
    """Return the LoRA layers, of which there must be some."""
    layers = list(lora_layers(model))
    if not layers:
        raise AdapterError("E-ADPT-69", "the model has no LoRA layer; it is already merged or never had one")
    return layers


def _take_off(model: nn.Module) -> nn.Module:
    """Put the plain layers back and restore requires_grad."""
    if isinstance(model, MergeableLayer):
        return model.release()
    for _, layer in list(lora_layers(model)):
        # The output projection of an attention layer goes with it.
        if any(module is layer for module in model.modules()):
            _replace(model, layer, layer.release())
    injection = injection_of(model)
    if injection is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = injection.trainable[name]
        object.__delattr__(model, _NOTE)
    return model


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands; one module may stand in several places."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _unfreeze_biases(model: nn.Module, config: LoraConfig) -> None:
    """Let the biases train that `config.bias` names."""
    if config.bias == "all":
        for name, parameter in model.named_parameters():
            if is_bias(name):
                parameter.requires_grad = True
    elif config.bias == "lora_only":
        for _, layer in lora_layers(model):
            bias = getattr(layer, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.requires_grad = True


def _trained_copy(module: nn.Module, copies: dict[int, nn.Parameter]) -> nn.Module:
    """Copy a module to train it; `copies` holds the copies of its parameters, so that what is tied stays tied."""
    trained = copy.deepcopy(module).requires_grad_(True)
    if any(parameter.is_meta for parameter in trained.parameters()):  # the base is still on disk; what is trained is not
        trained.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        holder = trained.get_submodule(owner)
        holder._parameters[leaf] = copies.setdefault(id(parameter), holder.get_parameter(leaf))
    return trained


def _refuse_both(targets: Iterable[tuple[Target, nn.Module]], saved: Container[str]) -> None:
    """Refuse a layer that would get LoRA and be trained in full."""
    both = [target.path for target, _ in targets if target.path in saved]
    if both:
        raise ConfigError(
            "E-CFG-165",
            f"{both[0]} would get LoRA and, tied to a saved module, be trained in full",
            place="modules_to_save",
            fix="Leave it out of target_modules",
        )


def _check_starts(
    new: Iterable[tuple[nn.Module, list[Target], MergeableLayer]],
    config: LoraConfig,
    original_weight: OriginalWeight | None,
    input_directions: Mapping[str, Tensor] | None,
) -> None:
    """Refuse layers that cannot start as the configuration asks, before anything is changed."""
    if config.use_dora and config.init_lora_weights == "loftq":
        raise ConfigError(
            "E-CFG-172",
            "loftq makes up for rounding, and DoRA would keep the lengths of the rounded rows on the original weights too",
            place="peft_config.init_lora_weights",
            fix="Leave one of them out",
        )
    initial = config.init_lora_weights
    for _, own, layer in new:
        for target in own if isinstance(initial, str) else ():
            if initial == "loftq":
                check_quantized(layer, target.path, original_weight)
            elif initial == "eva":
                check_directions(target, input_directions)
            else:
                check_principal_part(layer, target)


def _start(
    layer: MergeableLayer,
    path: str,
    config: LoraConfig,
    original_weight: OriginalWeight | None,
    input_directions: Mapping[str, Tensor] | None,
) -> None:
    """Give a layer's updates, drawn afresh, the start that the configuration asks for."""
    initial = config.init_lora_weights
    for own_path, update in layer.updates(path).items():
        if initial == "loftq" and original_weight is not None:
            start_with_rounding_error(update, original_weight(own_path))
        elif initial == "eva" and input_directions is not None:
            start_with_directions(update, input_directions[own_path])
        elif isinstance(initial, str):
            start_with_principal_part(update, initial)
        elif not initial:
            nn.init.normal_(update.lora_B if not isinstance(layer, Embedding) else update.lora_A, std=0.02)
    if config.use_dora:
        assert isinstance(layer, LinearLoRA)
        layer.start_dora()


def _by_module(targets: Iterable[tuple[Target, nn.Module]]) -> list[tuple[nn.Module, list[Target]]]:
    """Put together the targets that are parts of one module."""
    found: dict[int, tuple[nn.Module, list[Target]]] = {}
    for target, module in targets:
        found.setdefault(id(module), (module, []))[1].append(target)
    return list(found.values())


def _build(model: nn.Module, module: nn.Module, targets: list[Target], config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer for `module`, without its weights yet; refuse what cannot have one."""
    target = targets[0]
    if is_transformers_conv1d(module):
        build: Builder | None = _conv1d_hf
    else:
        build = BUILDERS.get(type(module))
    kind = type(module).__name__
    if build is None:
        base = next((known.__name__ for known in BUILDERS if isinstance(module, known)), None)
        why = f"it extends {base}, and its own behaviour would be lost" if base else "it has no weight of a known kind"
        raise ConfigError(
            "E-CFG-162",
            f"{target.path} is a {kind}; LoRA cannot go onto it, since {why}",
            place="target_modules",
            fix="Leave it out with exclude_modules, or name the layers inside it",
        )
    weight = None if isinstance(module, nn.MultiheadAttention) else module._parameters.get("weight")
    has_no_weight = isinstance(module, nn.MultiheadAttention | QuantizedLinear)
    if not has_no_weight and (weight is None or not weight.is_floating_point()):
        found = "is computed from other parameters" if weight is None else f"is of type {weight.dtype}"
        raise ConfigError(
            "E-CFG-162",
            f"{target.path} is a {kind} whose weight {found}, so LoRA cannot go onto it",
            place="target_modules",
            fix="Remove its weight norm, pruning or quantisation first, or leave it out with exclude_modules",
        )
    if config.use_dora and (not is_linear(module) or _is_read(model, module)):
        raise ConfigError(
            "E-CFG-172",
            f"{target.path} is a {kind}; DoRA is for linear layers that are called",
            place="peft_config.use_dora",
            fix="Leave the layer out with exclude_modules, or set use_dora to false",
        )
    if config.lora_dropout > 0 and isinstance(module, nn.MultiheadAttention):
        raise ConfigError(
            "E-CFG-163",
            f"{target.path} is a {kind}, whose projections take no dropout of their own",
            place="lora_dropout",
            fix="Set lora_dropout to 0",
        )
    if isinstance(module, nn.Linear) and config.lora_dropout == 0 and _is_read(model, module):
        return read_linear(module, r=target.r, lora_alpha=target.lora_alpha)
    layer = build(module, replace(target, r=sum(one.r for one in targets)), config)
    if target.rows is not None:
        assert isinstance(layer, LinearLoRA)
        layer.divide([_part(layer, one) for one in targets])
    return layer


def _part(layer: LinearLoRA, target: Target) -> Part:
    assert target.rows is not None
    size = len(layer.lora_B), layer.lora_A.shape[1]
    return Part(layer, target.path.rpartition(".")[2], target.rows, size, target.r, target.scaling)


def _is_read(model: nn.Module, module: nn.Module) -> bool:
    """Tell whether torch reads the weight of this linear layer instead of calling it."""
    readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return any(child is module for parent in model.modules() if isinstance(parent, readers) for child in parent.children())


def _linear(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of an nn.Linear; on the meta device, since `adopt` brings the weights."""
    assert isinstance(module, nn.Linear)
    return Linear(
        module.in_features,
        module.out_features,
        r=target.r,
        lora_alpha=target.lora_alpha,
        lora_dropout=config.lora_dropout,
        merge_weights=False,
        bias=module.bias is not None,
        device="meta",
    )


def _read_linear(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Refuse dropout on an output projection of attention, whose forward nobody calls."""
    raise ConfigError(
        "E-CFG-163",
        f"{target.path} is read by the layer around it, so its input takes no dropout",
        place="lora_dropout",
        fix="Set lora_dropout to 0",
    )


def _embedding(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of an nn.Embedding, on the meta device."""
    assert isinstance(module, nn.Embedding)
    return Embedding(
        module.num_embeddings,
        module.embedding_dim,
        r=target.r,
        lora_alpha=target.lora_alpha,
        merge_weights=False,
        padding_idx=module.padding_idx,
        max_norm=module.max_norm,
        norm_type=module.norm_type,
        scale_grad_by_freq=module.scale_grad_by_freq,
        sparse=module.sparse,
        device="meta",
    )


def _conv(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of a convolution."""
    groups = getattr(module, "groups", 1)
    if target.r % groups:
        raise ConfigError(
            "E-CFG-164",
            f"r is {target.r}, but {target.path} has {groups} groups, which must divide it",
            place="r",
            fix=f"Use a multiple of {groups}, or rank_pattern for this layer",
        )
    return adapted_conv(module, r=target.r, lora_alpha=target.lora_alpha, lora_dropout=config.lora_dropout)


def _attention(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of an nn.MultiheadAttention."""
    assert isinstance(module, nn.MultiheadAttention)
    if not module._qkv_same_embed_dim:
        raise ConfigError(
            "E-CFG-164",
            f"{target.path} has keys or values of another width (kdim, vdim), so it has no packed projection",
            place="target_modules",
            fix=f"Name {target.path}.out_proj to adapt its output projection alone",
        )
    return adapted_attention(module, r=target.r, lora_alpha=target.lora_alpha)


def _conv1d_hf(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of transformers' Conv1D."""
    from lorakeet.lora.conv1d_hf import adapted_conv1d

    return adapted_conv1d(module, r=target.r, lora_alpha=target.lora_alpha, lora_dropout=config.lora_dropout)


def _quantized(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of a quantised linear layer."""
    return adapted_quantized(module, r=target.r, lora_alpha=target.lora_alpha, lora_dropout=config.lora_dropout)


BUILDERS: dict[type[nn.Module], Builder] = {
    nn.Linear: _linear,
    NonDynamicallyQuantizableLinear: _read_linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.MultiheadAttention: _attention,
    Linear4bit: _quantized,
    Linear8bit: _quantized,
}
"""Which layer takes the place of which; exact types, so that no subclass loses what it adds."""


def peft_path(model: nn.Module, path: str) -> str:
    """Return the path PEFT gives a LoRA layer: it wraps an attention layer, so what lies inside is one level down."""
    parent, _, name = path.rpartition(".")
    inside = name == "out_proj" and isinstance(model.get_submodule(parent), MultiheadAttention)
    return f"{parent}.base_layer.{name}" if inside else path


def adapter_extras(model: nn.Module, config: LoraConfig) -> dict[str, Tensor]:
    """Return what the adapter holds beside LoRA, live, under PEFT's names: biases and modules_to_save."""
    layers = dict(lora_layers(model))
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        if is_bias(name) and (config.bias == "all" or (config.bias == "lora_only" and path in layers)):
            tensors[f"{peft_path(model, path)}.base_layer.bias" if path in layers else name] = parameter.data
    injection = injection_of(model)
    for path in injection.saved_modules if injection is not None else ():
        module = model.get_submodule(path)
        if not isinstance(module, TrainedTokens):
            tensors.update({f"{path}.{name}": tensor for name, tensor in module.state_dict().items()})
    return tensors | (saved_rows(model, list(injection.saved_modules)) if injection is not None else {})
