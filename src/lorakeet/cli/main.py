"""The `lorakeet` command: finds the subcommand, and turns every ending into its exit status.

0 done; 1 a defect of ours, with its traceback; 2 something the user can fix, in one line; 130 interrupted.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import MutableMapping
from typing import Annotated

import typer

from lorakeet import dist, progress
from lorakeet.cli import (
    chat,
    check,
    combine,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    extract,
    inspect,
    merge,
    models,
    push,
    report,
    reproduce,
    serve,
    train,
    verify,
)
from lorakeet.cli.help import Command, Group, group_of
from lorakeet.errors import LorakeetError, redact
from lorakeet.rundir.log import LogFormatter
from lorakeet.version import __version__

# The common base of what a wrong command line raises; typer names it publicly only through its heirs.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_INTERRUPTED = 130

app = typer.Typer(
    name="lorakeet",
    cls=Group,
    help="Fine-tune chat models with LoRA, and know that it is right.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def whole(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Fine-tune chat models with LoRA, and know that it is right."""
    if version:
        print(f"lorakeet {__version__}")
        raise typer.Exit


for module in (
    *(demo, doctor, models, train, check, verify, evaluate, report, diff, reproduce),
    *(chat, serve, merge, export, push, inspect, combine, extract),
):
    name = module.__name__.rsplit(".", 1)[1]
    app.command(name, cls=Command, rich_help_panel=group_of(name))(module.command)


def main() -> None:
    """Run the command line and exit with its status."""
    let_idle_threads_sleep(os.environ)
    # SIGTERM ends a command as Ctrl-C does: what is half written goes, and the status is 130.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def let_idle_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Make OpenMP's threads sleep at barriers instead of spinning, unless the user has said how they should wait.

    Alone on the machine it costs nothing; beside another busy process training is more than twice as fast, since
    no core is burnt waiting. OpenMP reads this when torch is imported, and in this process alone.
    """
    if not any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    handler = progress.LogHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("lorakeet").setLevel(logging.INFO)
    try:
        with dist.processes():
            result = app(arguments, standalone_mode=False)
            if result == _INTERRUPTED:  # how some versions of typer hand on a KeyboardInterrupt
                raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except LorakeetError as error:
        progress.say(str(error))
        return 2
    except UsageError as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    except (KeyboardInterrupt, typer.Abort):
        progress.say("Interrupted.")
        return _INTERRUPTED
    except typer.Exit as ending:
        return ending.exit_code
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        return 0
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        print("This is a defect of lorakeet. Please report it with the lines above.", file=sys.stderr)
        return 1
