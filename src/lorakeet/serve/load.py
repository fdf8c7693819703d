"""From the names that a person gives to what is served: one base, and the adapters of all runs over it.

data in: run directories and at most one model → out: `Served`. Each adapter is named after its run's directory.
"""

from collections.abc import Sequence
from pathlib import Path

from lorakeet import chat_model
from lorakeet.config import QuantizationConfig
from lorakeet.errors import ServerError
from lorakeet.lora.per_row import read_adapter
from lorakeet.models.weights import fingerprint
from lorakeet.rundir.record import CONFIG, RunRecord, find_run
from lorakeet.serve.served import Served, ServedAdapter


def load_served(runs: Sequence[str] = (), *, load_in_4bit: bool = False) -> Served:
    """Load runs over one base, or a model; the newest finished run if nothing is named.

    Raises: ServerError E-SRV-286 for different bases; errors of what is loaded.
    """
    models = [name for name in runs if not (Path(name) / CONFIG).is_file()]
    records = [RunRecord(find_run(name, finished=True)) for name in (runs or (None,)) if name not in models]
    for record in records:
        record.require_finished()
    configs = [record.config for record in records]
    bases = {(name, None) for name in models} | {(config.model, config.quantization_config) for config in configs}
    names = sorted({name for name, _ in bases})
    if len(names) > 1 or len({quantization for _, quantization in bases if quantization is not None}) > 1:
        found = f"the runs differ in their base or its quantisation: {', '.join(names)}"
        raise ServerError("E-SRV-286", found, place="serve", fix="Serve runs over one base")
    quantization = configs[0].quantization_config if configs else chat_model.FULL_PRECISION
    loaded = chat_model.load(
        names[0],
        bf16=configs[0].bf16 if configs else None,
        template=configs[0].data.template if configs else None,
        quantization=QuantizationConfig(load_in_4bit=True) if load_in_4bit else quantization,
    )
    base_hash = fingerprint(loaded.directory)
    served = Served(names[0], loaded.model, loaded.tokenizer, loaded.template, str(loaded.directory), base_hash)
    for record, config in zip(records, configs, strict=True):
        adapter = read_adapter(loaded.model, record.adapter_directory, base_hash=base_hash)
        name = record.directory.resolve().name
        if name in served.adapters or name == served.name:
            raise ServerError("E-SRV-284", f'"{name}" would name two models', place="serve", fix="Rename a run's directory")
        served.adapters[name] = ServedAdapter(adapter, str(record.adapter_directory), config.data.system)
    return served
