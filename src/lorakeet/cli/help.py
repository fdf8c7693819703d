"""How `--help` looks: commands and options in groups, and switches without a value behind them.

data in: the parameters of a command → out: the same, dressed for typer. What each one does is said where it is declared.
"""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

COMMANDS = {
    "Begin here": ("demo", "doctor", "models"),
    "Train": ("train", "check", "verify", "evaluate", "report", "diff", "reproduce"),
    "Use": ("chat", "serve", "merge", "export", "push"),
    "Adapters": ("inspect", "combine", "extract"),
}
"""The commands, by the group they stand in."""

_OF_A_RUN = {
    "Run": ("output", "name", "config", "assignments", "resume", "restart"),
    "Training": ("epochs", "max_steps", "lr", "batch_size", "max_length", "learn", "seed"),
    "Model and LoRA": ("r", "load_in_4bit", "load_in_8bit"),
    "Data": ("eval_data", "format_", "columns", "roles", "merge_turns", "reasoning", "template", "system", "truncation"),
}
_OF_A_CHAT = {"Generation": ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
"""Options of the commands that have many, by group."""


class Command(TyperCommand):
    """A command whose options are shown in groups."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = {param.name for param in self.params}
        groups = _OF_A_RUN if "assignments" in names else _OF_A_CHAT if "temperature" in names else {}
        for param in self.params:
            if isinstance(param, TyperArgument) and param.metavar is None:
                param.metavar = (param.name or "").upper()
            elif isinstance(param, TyperOption):
                param.rich_help_panel = next((group for group, members in groups.items() if param.name in members), None)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, --help among them."""
        return _with_bare_switches(super().get_params(ctx))


class Group(TyperGroup):
    """The command `lorakeet` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, --help among them."""
        return _with_bare_switches(super().get_params(ctx))


def _with_bare_switches(params: list[Any]) -> list[Any]:
    """Take away the type that typer puts behind a switch."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def group_of(command: str) -> str | None:
    """Return the group in which `lorakeet --help` shows a command."""
    return next((group for group, names in COMMANDS.items() if command in names), None)
