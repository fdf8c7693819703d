"""The flags that `train` and `check` share: what to train on, and what decides its cost; and where each flag goes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorakeet.config import RunConfig

Model = Annotated[str | None, typer.Argument(help="Alias, directory or hub id; demo needs no download.")]
Data = Annotated[list[str] | None, typer.Argument(help="Files, directories, hub ids, or demo.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file, such as an earlier RUN/config.yaml.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one configuration key. Repeatable.")
]
EvalData = Annotated[list[str] | None, typer.Option(help="Evaluation data. Default: a part of DATA is held out.")]
Format = Annotated[str | None, typer.Option("--format", help="Format of the rows. Default: found from their keys.")]
Columns = Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Name of a column in the rows. Repeatable.")]
Roles = Annotated[list[str] | None, typer.Option(metavar="THEIRS=OURS", help="Name of a role in the rows. Repeatable.")]
MergeTurns = Annotated[bool | None, typer.Option("--merge-turns", help="Join consecutive turns of the same role.")]
ReasoningChoice = Annotated[str | None, typer.Option("--reasoning", help="keep or drop reasoning that has a field of its own.")]
TemplateName = Annotated[str | None, typer.Option(help="Chat template. Default: the model's own.")]
Learn = Annotated[str | None, typer.Option(help="What to train on: all (assistant turns), last, marked, or text.")]
System = Annotated[str | None, typer.Option(help="System prompt for every conversation.")]
MaxLength = Annotated[int | None, typer.Option(help="Maximum length of a conversation in tokens.")]
Truncation = Annotated[str | None, typer.Option(help="For longer conversations: error, drop or truncate-left.")]

Adapter = Annotated[Path | None, typer.Option(help="Run or adapter directory to start from. Default: a fresh adapter.")]
Epochs = Annotated[float | None, typer.Option(help="Number of training epochs.")]
MaxSteps = Annotated[int | None, typer.Option(help="Number of optimizer steps, in place of --epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Conversations per device and step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Rank = Annotated[int | None, typer.Option(help="LoRA rank.")]
LoadIn4bit = Annotated[bool | None, typer.Option("--load-in-4bit", help="Load the base model in 4-bit (QLoRA).")]
LoadIn8bit = Annotated[bool | None, typer.Option("--load-in-8bit", help="Load the base model in 8-bit.")]

_KEYS = {
    "training_config": {
        "output": "output_dir",
        "name": "run_name",
        "epochs": "num_train_epochs",
        "max_steps": "max_steps",
        "lr": "learning_rate",
        "batch_size": "per_device_train_batch_size",
        "max_length": "max_length",
        "seed": "seed",
    },
    "peft_config": {"r": "r"},
    "quantization_config": {"load_in_4bit": "load_in_4bit", "load_in_8bit": "load_in_8bit"},
    "data": {
        "data": "train",
        "eval_data": "eval",
        "format_": "format",
        "columns": "columns",
        "roles": "roles",
        "merge_turns": "merge_turns",
        "reasoning": "reasoning",
        "template": "template",
        "learn": "learn",
        "system": "system",
        "truncation": "truncation",
    },
}
"""The key that each flag sets, by section and by the name of the command's parameter."""


def config_from(parameters: dict[str, Any]) -> "RunConfig":
    """Build the run's configuration from a command's parameters; those that are no key of it are passed over."""
    from lorakeet.config import pairs, resolve_config

    said = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
    said["data"] = said["data"] or None
    said["columns"], said["roles"] = pairs("--columns", said["columns"]), pairs("--roles", said["roles"])
    sections = {section: {key: said[flag] for flag, key in keys.items() if flag in said} for section, keys in _KEYS.items()}
    return resolve_config(
        file=parameters["config"],
        model=said["model"],
        adapter=said["adapter"],
        flags=sections,
        assignments=said["assignments"] or [],
    )
