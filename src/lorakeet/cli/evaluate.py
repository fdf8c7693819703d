"""`lorakeet evaluate`: how good a run is on held-out rows, beside its base model."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path | None, typer.Argument(help="Run directory. Default: the newest finished run.")] = None,
    data: Annotated[list[str] | None, typer.Argument(help="Evaluation data. Default: the held-out rows of the run.")] = None,
    metrics: Annotated[
        str, typer.Option(help="loss, exact_match, rouge, bleu, chrf, json_match, number_match; separate with commas.")
    ] = "loss,exact_match,rouge",
    also: Annotated[list[Path] | None, typer.Option(help="Another run to measure on the same rows. Repeatable.")] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Measure the base model too.")] = True,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Evaluate the first rows only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 256,
    examples: Annotated[int, typer.Option(min=0, help="Number of worst and of most changed answers to show.")] = 3,
    answers: Annotated[Path | None, typer.Option(help="Also write every answer to this JSONL file.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Run tasks of lm-evaluation-harness instead; separate with commas. Repeatable.")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in each prompt of a task.")] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Ask tasks as a conversation.")] = False,
    include_path: Annotated[Path | None, typer.Option(help="Folder with the YAML files of further tasks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as one JSON object.")] = False,
) -> None:
    """Measure RUN on held-out rows, the base model beside it, and say whether the difference is real.

    Example: lorakeet evaluate runs/mine held_out.jsonl --metrics loss,exact_match
    """
    from rich.console import Console

    from lorakeet import api, progress
    from lorakeet.evaluation.tables import answers_to_dicts, print_comparison, print_tasks, to_dict

    opened = api.open_run(run, finished=True)
    if run is None:
        progress.say(f"Run: {opened.directory}")
    if task:
        with progress.shown():
            found = api.evaluate_tasks(
                opened.directory,
                [name.strip() for names in task for name in names.split(",") if name.strip()],
                base=base,
                max_rows=max_rows,
                num_fewshot=num_fewshot,
                with_template=apply_chat_template,
                folder=include_path,
            )
        if as_json:
            print(json.dumps({"run_dir": str(opened.directory), "tasks": found}))
        else:
            print_tasks(found, Console())
        return
    with progress.shown():
        comparison = opened.evaluate(
            data or None,
            metrics=[name.strip() for name in metrics.split(",") if name.strip()],
            base=base,
            others=also or [],
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            on_progress=progress.report,
        )
    if answers is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in answers_to_dicts(comparison))
        answers.write_text("".join(lines), encoding="utf-8")
    if as_json:
        print(json.dumps({"run_dir": str(opened.directory), **to_dict(comparison)}))
    else:
        print_comparison(comparison, Console(), num_examples=examples)
