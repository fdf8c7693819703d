"""`lorakeet chat`: talk to a model, or get one answer."""

import json
import sys
from collections.abc import Callable
from typing import Annotated

import typer


def command(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN or MODEL", help="Run directory or model. Default: the newest finished run.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this question and exit; - reads it from standard input.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: the run's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 512,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 for greedy decoding.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens up to this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many most likely tokens; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Chat with a run or any other model; --prompt prints one answer.

    Example: lorakeet chat runs/mine --prompt "What is LoRA?"
    """
    from lorakeet import api, progress
    from lorakeet.errors import ConfigError
    from lorakeet.infer.chat_commands import run_chat
    from lorakeet.infer.sampling import Sampling

    sampling = Sampling(temperature, top_p, top_k, seed)
    if as_json and prompt is None:
        raise ConfigError("E-CFG-131", "--json needs a question", fix='Add --prompt "..."')
    with progress.shown():
        session = api.chat(run, system=system, max_new_tokens=max_new_tokens, sampling=sampling)
    if prompt is None:
        _note(f"Talking to {run or api.open_run(finished=True).directory}. /help lists the commands, /exit leaves.")
        run_chat(session, _reader(), _write, _note)
        return
    prompt = sys.stdin.read() if prompt == "-" else prompt
    reply = session.ask(prompt, on_text=None if as_json else _write)
    if as_json:
        opened = api.run_of(run)
        result = {
            "answer": reply.text,
            "prompt_tokens": reply.num_prompt_tokens,
            "answer_tokens": reply.num_answer_tokens,
            "stop_reason": reply.stop_reason,
            "tokens_per_second": round(reply.tokens_per_second, 2),
            "model": str(session.chat_model.directory),
            "run_dir": str(opened.directory) if opened is not None else None,
        }
        print(json.dumps(result))
    else:
        _write("\n")


def _reader() -> Callable[[], str | None]:
    """Return what reads the next line: with history and completion at a terminal, if prompt_toolkit is there."""
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        return _read
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _read
    from lorakeet.infer.terminal import terminal_reader

    return terminal_reader(PromptSession)


def _read() -> str | None:
    """Read a line; at a terminal ask for it, on stderr, where it does not mix with the answers."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line if line else None


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _note(text: str) -> None:
    from lorakeet import progress

    progress.say(text)
