"""Reference pages written from the code: every command with its flags, every key with its default.

data in: the typer application and the configuration classes → out: Markdown. The site is built with it (tools/site_hook.py);
`python -m tools.reference DIR` writes the pages into a folder to read them without the site.
"""

import ast
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lorakeet.cli import main
from lorakeet.config import DataConfig, LoraConfig, QuantizationConfig, TrainingConfig

SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "training_config": TrainingConfig,
    "peft_config": LoraConfig,
    "quantization_config": QuantizationConfig,
}
COMMANDS_HEAD = """# Every command

Written from the code. Every command has `--help`. Progress goes to stderr, results to stdout; `--json` prints one JSON
object as the last line of stdout. Exit status: 0 done, 2 something you can mend, in one line, 1 a defect of Lorakeet's,
130 interrupted.
"""
KEYS_HEAD = """# Every key

Written from the code. A configuration has a `model` and the sections below, as YAML (`--config FILE`), in Python
(`lorakeet.train(model, data, training_config={...})`), or one at a time (`--set training_config.seed=1`).
[Training](training.md) explains the keys in context, and lists what happens to every other key of `TrainingArguments`,
`SFTConfig` and `peft.LoraConfig`.
"""


def commands_page() -> str:
    """Return docs/commands.md: each command's purpose, example, arguments and flags."""
    return "\n".join([COMMANDS_HEAD, *(_command(name, command) for name, command in commands().items())])


def commands() -> dict[str, Any]:
    """Return the commands by name, in the order of `lorakeet --help`."""
    return dict(typer.main.get_command(main.app).commands)  # type: ignore[attr-defined]


def purpose(command: Any) -> tuple[str, str]:
    """Return what a command does, and its example."""
    text, _, example = " ".join((command.help or "").split()).partition("Example: ")
    return text.strip(), example.strip()


def _command(name: str, command: Any) -> str:
    text, example = purpose(command)
    lines = [f"## {name}", "", text, "", "```text", example, "```", "", "| | | |", "|---|---|---|"]
    for one in command.params:
        if one.name != "help" and not getattr(one, "hidden", False):
            lines.append(f"| {_names(one)} | {_kind(one)} | {_cell(getattr(one, 'help', None) or '')} |")
    return "\n".join(lines) + "\n"


def _names(one: Any) -> str:
    names = [one.make_metavar_name() if hasattr(one, "make_metavar_name") else (one.metavar or one.name.upper())]
    if one.param_type_name == "option":
        names = [*one.opts, *one.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _kind(one: Any) -> str:
    if one.param_type_name == "argument":
        return "required" if one.required else ""
    if getattr(one, "is_flag", False):
        return "switch"
    return "required" if one.required else ("" if one.default in (None, []) else f"`{one.default}`")


def keys_page() -> str:
    """Return docs/keys.md: each section's keys with type, default and meaning."""
    return "\n".join([KEYS_HEAD, *(_section(name, kind) for name, kind in SECTIONS.items())])


def _section(name: str, kind: type[BaseModel]) -> str:
    lines = [f"## {name}", "", (kind.__doc__ or "").strip(), "", "| Key | Type | Default | |", "|---|---|---|---|"]
    meanings = field_docs(kind)
    for key, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{_plain(default)}`"
        lines.append(f"| `{key}` | `{_cell(_type_name(field.annotation))}` | {shown} | {_cell(meanings.get(key, ''))} |")
    return "\n".join(lines) + "\n"


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """Return the texts that stand below the fields of a class in its source."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return found


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(annotation))
    if arguments := typing.get_args(annotation):
        is_union = typing.get_origin(annotation) not in (list, dict, tuple, typing.Annotated)
        if is_union:
            return " or ".join(_type_name(one) for one in arguments)
        return _type_name(arguments[0]) if typing.get_origin(annotation) is typing.Annotated else str(annotation)
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    for file, page in (("commands.md", commands_page()), ("keys.md", keys_page())):
        Path(sys.argv[1], file).write_text(page, encoding="utf-8")
