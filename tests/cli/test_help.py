"""`--help` at 80 columns: commands and options in groups, switches without a value, no line beyond the terminal."""

import os
import subprocess
import sys

import pytest
import typer

from lorakeet.cli import help as groups
from lorakeet.cli import main

COMMANDS = sorted(typer.main.get_command(main.app).commands)


def shown(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert main.run([*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_switches_have_no_value(command, capsys, monkeypatch):
    text = shown(capsys, monkeypatch, *command.split())
    assert max(map(len, text.splitlines())) <= 80
    assert "bool" not in text
    assert "Example: lorakeet" in text or not command


def test_every_command_stands_in_a_group(capsys, monkeypatch):
    assert sorted(name for names in groups.COMMANDS.values() for name in names) == COMMANDS
    text = shown(capsys, monkeypatch)
    assert [title for title in groups.COMMANDS if f"─ {title} ─" in text] == list(groups.COMMANDS)


def test_train_has_its_options_in_groups(capsys, monkeypatch):
    text = shown(capsys, monkeypatch, "train")
    titles = ["─ Options ─", "─ Run ─", "─ Training ─", "─ Model and LoRA ─", "─ Data ─"]
    assert all(text.count(title) == 1 for title in titles)
    assert text.index("─ Training ─") < text.index("│ --lr") < text.index("─ Model and LoRA ─")


def test_a_shell_can_complete_commands():
    asked = {"_LORAKEET_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "lorakeet eval"}
    code = "import sys; sys.argv = ['lorakeet']; from lorakeet.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert '"evaluate"' in done.stdout, done.stderr
