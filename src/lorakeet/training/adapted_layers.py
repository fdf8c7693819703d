"""A look at where the adapters went, before anything is trained.

data in: a model with LoRA, its configuration → out: nothing, or an error. A name that reaches some layers and misses
others trains a fraction of what was asked for, and no loss shows it.
"""

from collections import defaultdict

from lorakeet.config import LoraConfig
from lorakeet.errors import TrainingError
from lorakeet.lora.inject import trained_updates
from lorakeet.models.decoder import CausalLM

_LAYERS = "model.layers."


def check_adapted_layers(model: CausalLM, config: LoraConfig) -> None:
    """Raise TrainingError E-TRAIN-18 unless every name that is adapted is adapted in every layer that is meant."""
    targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules
    if any("." in name for name in [*targets, *config.exclude_modules]):
        return  # single modules were named by their paths
    found: dict[str, set[int]] = defaultdict(set)
    for path, _ in trained_updates(model):
        if path.startswith(_LAYERS):
            index, _, name = path.removeprefix(_LAYERS).partition(".")
            found[name].add(int(index))
    chosen = config.layers_to_transform
    if chosen is None:
        chosen = list(range(model.config.num_hidden_layers))
    meant = {chosen} if isinstance(chosen, int) else set(chosen)
    for name, layers in found.items():
        if layers != meant:
            raise TrainingError(
                "E-TRAIN-18",
                f"{name} is adapted in {len(layers)} of {len(meant)} layers",
                place="target_modules",
                fix="Report this: the names given reach every layer of this model",
            )
