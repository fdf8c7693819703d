"""`lorakeet train`: check, train, save."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from lorakeet.cli import data_flags as flags


def command(
    model: flags.Model = None,
    data: flags.Data = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory. Default: a new one.")] = None,
    config: flags.ConfigFile = None,
    assignments: flags.Assignments = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest valid checkpoint.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start the run again from step 0; nothing is deleted.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run directory under runs/.")] = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    lr: flags.LearningRate = None,
    r: flags.Rank = None,
    adapter: flags.Adapter = None,
    load_in_4bit: flags.LoadIn4bit = None,
    load_in_8bit: flags.LoadIn8bit = None,
    batch_size: flags.BatchSize = None,
    max_length: flags.MaxLength = None,
    seed: flags.Seed = None,
    eval_data: flags.EvalData = None,
    format_: flags.Format = None,
    columns: flags.Columns = None,
    roles: flags.Roles = None,
    merge_turns: flags.MergeTurns = None,
    reasoning: flags.ReasoningChoice = None,
    template: flags.TemplateName = None,
    learn: flags.Learn = None,
    system: flags.System = None,
    truncation: flags.Truncation = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show everything that RUN/train.log gets.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Fine-tune MODEL on DATA with LoRA.

    Example: lorakeet train phi3-mini chats.jsonl --epochs 2 --lr 1e-4
    """
    from lorakeet import api, dist
    from lorakeet.formatting import command as command_line

    if verbose:
        logging.getLogger("lorakeet").setLevel(logging.DEBUG)
    if resume and model is None and config is None:
        output = api.open_run(output).directory
        config = output / "config.yaml"
    resolved = flags.config_from(locals())
    run = api.train(config=resolved, resume=resume, restart=restart)
    if not dist.is_main():
        return
    if as_json:
        print(json.dumps(run.summary))
    else:
        print(f"Adapter: {run.adapter_directory}")
        print(f"Chat with it: {command_line('chat', run.directory)}")
        print(f"Serve it: {command_line('serve', run.directory)}")
