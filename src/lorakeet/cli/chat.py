"""`lorakeet chat`: talk to a model, or get one answer."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorakeet.infer.chat_commands import Show
    from lorakeet.infer.chat_session import ChatSession


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN or MODEL", help="Runs over one base, or a model. Default: the newest finished run."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this question and exit; - reads it from standard input.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: the run's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 512,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 for greedy decoding.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens up to this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many most likely tokens; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Load the base model in 4-bit.")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Load the base model in 8-bit.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown/--plain", help="Show answers as Markdown in a terminal.")] = True,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Remember questions for the next chat.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Chat with runs over one base, or any other model; --prompt prints one answer.

    Example: lorakeet chat runs/mine --prompt "What is LoRA?"
    """
    from lorakeet import api, progress
    from lorakeet.errors import ConfigError
    from lorakeet.infer.chat_commands import run_chat
    from lorakeet.infer.sampling import Sampling

    sampling = Sampling(temperature, top_p, top_k, seed)
    if as_json and prompt is None:
        raise ConfigError("E-CFG-131", "--json needs a question", fix='Add --prompt "..."')
    named: list[str] = runs or [str(api.open_run(finished=True).directory)]
    with progress.shown():
        bits = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        session = api.chat(named, system=system, max_new_tokens=max_new_tokens, sampling=sampling, **bits)
    if prompt is None:
        _note(f"Talking to {named[0]}. /help lists the commands, /exit leaves.")
        run_chat(session, _reader(session, remembers=history), _shows(markdown), _note)
        return
    prompt = sys.stdin.read() if prompt == "-" else prompt
    reply = session.ask(prompt, on_text=None if as_json else _write)
    if as_json:
        opened = api.run_of(named[0])
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


def _reader(session: "ChatSession", *, remembers: bool) -> Callable[[], str | None]:
    """Return what reads the next line: with history and completion at a terminal, if prompt_toolkit is there."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
    except ImportError:
        return _read
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _read
    from lorakeet.files.cache import state_dir
    from lorakeet.infer.terminal import terminal_reader

    file = state_dir() / "chat_history" if remembers else None
    # Answers may go to a file; then what is typed is shown on stderr.
    return terminal_reader(PromptSession, adapters=session.names, history=file, output=create_output(always_prefer_tty=True))


def _shows(markdown: bool) -> "Show":
    """Return what shows an answer: as Markdown in a terminal, as it is in a pipe."""
    from rich.console import Console

    from lorakeet.infer.chat_commands import plain
    from lorakeet.infer.markdown import shown_markdown

    console = Console(highlight=False)
    return partial(shown_markdown, console) if markdown and console.is_interactive else partial(plain, _write)


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
