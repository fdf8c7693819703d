"""The card of what a run has trained: its data, figures and settings as its files have them.

data in: a run's configuration, rows of metrics and hashes → out: a Card. Names data as the user did, files by their
names alone, since where they lay is nobody's business.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakeet.adapters.model_card import Card, adapter_card, is_hub_id
from lorakeet.config import RunConfig
from lorakeet.files.durable import write_file
from lorakeet.files.hashing import file_sha256
from lorakeet.lora.adapter import WEIGHTS_FILE
from lorakeet.models.catalogue import MODELS
from lorakeet.models.registry import DEMO, DEMO_NAME
from lorakeet.rundir.metrics_file import read_lines

LICENSES = {model.hub: model.licence for model in MODELS.values()} | {DEMO_NAME: "apache-2.0"}
"""Licences of the base models that we know by name."""
_SETTINGS = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size", "seed")


def run_card(
    config: RunConfig,
    rows: Sequence[Mapping[str, Any]],
    *,
    base_name: str,
    name: str = "",
    step: int | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Card:
    """Describe a run; `rows` are those of its metrics.jsonl, `step` is the one whose adapter was kept."""
    return Card(
        base=base_name,
        name=name,
        license=LICENSES.get(base_name),
        datasets=tuple(dict.fromkeys(_hub_part(source) for source in config.data.train if _is_hub_data(source))),
        data=tuple(_shown(source) for source in config.data.train),
        figures=_figures(rows, step),
        settings=_settings(config),
        hashes=dict(hashes or {}),
        system=config.data.system,
    )


def _hub_part(source: str) -> str:
    """Return owner/name of owner/name:split."""
    return source.removeprefix("hf://").partition(":")[0]


def _is_hub_data(source: str) -> bool:
    return is_hub_id(_hub_part(source)) and not Path(source).exists() and not Path(_hub_part(source)).suffix


def _shown(source: str) -> str:
    if source == DEMO:
        return "demo: lorakeet's generated tool-call requests"
    return source if _is_hub_data(source) else Path(source).name


def _figures(rows: Sequence[Mapping[str, Any]], step: int | None) -> dict[str, str]:
    """Return the results of the run."""
    trained = [row for row in rows if "loss" in row]
    if not trained:
        return {}
    last = trained[-1]
    kept = last["step"] if step is None else step
    held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    figures = {"steps": f"{kept:,}", "training loss (last step)": f"{last['loss']:.4f}"}
    for label, at in (("held-out loss before", 0), ("held-out loss after", kept)):
        if at in held_out:
            figures[label] = f"{held_out[at]:.4f}"
    if "num_supervised_tokens" in last:
        figures["tokens trained on"] = f"{last['num_supervised_tokens']:,}"
    return figures


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that matter most."""
    lora = config.peft_config
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    settings: dict[str, Any] = {"r": lora.r, "lora_alpha": f"{lora.lora_alpha:g}", "target_modules": targets}
    training = config.training_config.model_dump()
    settings |= {key: training[key] for key in _SETTINGS if training.get(key) is not None}
    if config.quantization_config.is_on:
        settings["base while training"] = "quantised"
    if config.data.template:
        settings["chat template"] = config.data.template
    return settings


def write_run_card(adapter: Path, run: Path, config: RunConfig, *, base_name: str, step: int, base_hash: str) -> None:
    """Write the model card of an adapter that was just trained in `run`, whose metrics are on disk."""
    card = run_card(
        config,
        list(read_lines(run / "metrics.jsonl")),
        base_name=base_name,
        name="",
        step=step,
        hashes={"weights of the base model": base_hash, WEIGHTS_FILE: file_sha256(adapter / WEIGHTS_FILE)},
    )
    write_file(adapter / "README.md", adapter_card(card).encode())
