"""From the names that a person gives to one base model and the adapters of runs over it, for chat and the server.

data in: run directories and at most one model → out: `OneBase`. Each adapter is named after its run's directory and kept
apart from the model, so that any of them may answer. It answers nothing itself.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorakeet import chat_model
from lorakeet.chat_model import ChatModel
from lorakeet.config import QuantizationConfig, RunConfig
from lorakeet.errors import AdapterError, ServerError
from lorakeet.lora.per_row import Adapter, read_adapter
from lorakeet.models.weights import fingerprint
from lorakeet.rundir.record import CONFIG, RunRecord, find_run


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter under a name."""

    adapter: Adapter
    root: str
    system: str | None = None
    """The system prompt it was trained with, for conversations that bring none."""
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class OneBase:
    """A base model, and adapters over it by name, the first one first."""

    name: str
    chat_model: ChatModel
    base_hash: str
    adapters: dict[str, NamedAdapter]


def load_one_base(
    names: Sequence[str | Path] = (), *, load_in_4bit: bool = False, load_in_8bit: bool = False, may_lie_in_model: bool = False
) -> OneBase:
    """Load runs over one base, or a model; the newest finished run if nothing is named.

    Args:
        load_in_4bit: hold the base in 4 bits, whatever it was trained over; `load_in_8bit` likewise, not both.
        may_lie_in_model: put the adapter of a single run into the model if it cannot be kept apart, since it trains more
            than pairs of matrices.

    Raises: ServerError E-SRV-286 if the runs differ in their base, 284 if two have one name; errors of what is loaded.
    """
    models = [str(name) for name in names if not (Path(name) / CONFIG).is_file()]
    records = [RunRecord(find_run(name, finished=True)) for name in (names or (None,)) if str(name) not in models]
    for record in records:
        record.require_finished()
    configs = [record.config for record in records]
    _require_one_base(models, configs)
    name = (models or [configs[0].model])[0]
    asked = QuantizationConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
    if configs:
        loaded = chat_model.load_base(configs[0], quantization=asked if asked.is_on else None)
    else:
        loaded = chat_model.load(name, quantization=asked)
    base = OneBase(name, loaded, fingerprint(loaded.directory), {})
    for record, config in zip(records, configs, strict=True):
        short = record.directory.resolve().name
        if short in base.adapters or short == name:
            raise ServerError("E-SRV-284", f'"{short}" would name two models', fix="Rename a run's directory")
        try:
            adapter = read_adapter(loaded.model, record.adapter_directory, base_hash=base.base_hash)
        except AdapterError as error:
            if error.code != "E-ADPT-270" or not may_lie_in_model or len(records) > 1:
                raise
            loaded.with_adapter(record.adapter_directory)
            return base
        base.adapters[short] = NamedAdapter(adapter, str(record.adapter_directory), config.data.system)
    return base


def _require_one_base(models: Sequence[str], configs: Sequence[RunConfig]) -> None:
    """Raise E-SRV-286 if what is loaded once would not be that of every run."""
    found: dict[str, set[Hashable]] = {
        "base model": {*models, *(config.model for config in configs)},
        "quantisation": {config.quantization_config for config in configs},
        "chat template": {config.data.template for config in configs},
    }
    for what, values in found.items():
        if len(values) > 1:
            shown = "" if what == "quantisation" else f": {', '.join(sorted(map(str, values)))}"
            raise ServerError("E-SRV-286", f"the runs differ in their {what}{shown}", fix="Name runs over one base")
