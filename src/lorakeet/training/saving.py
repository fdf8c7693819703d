"""A training run that is saved on the way: every so many steps, at the best evaluation, and where somebody stops it.

data in: a Trainer ready to go, the run's directory → out: checkpoints, metrics.jsonl and what else reports; at the end
the trained state, or the best one, in the model. Writing the adapter is not done here.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from lorakeet import dist
from lorakeet.config import RunConfig
from lorakeet.rundir import checkpoint
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import ConsoleReporter, JsonlReporter, Reporter, Reporters
from lorakeet.training.samples import Sampler
from lorakeet.training.services import open_reporters

logger = logging.getLogger(__name__)


def train_and_save(directory: Path, config: RunConfig, trainer: Trainer, sampler: Sampler, identity: dict[str, str]) -> None:
    """Train to the end, saving on the way, and at once where somebody wants to stop."""
    settings, stop = trainer.config, trainer.stop
    metrics = JsonlReporter(directory / "metrics.jsonl", trainer.step) if dist.is_main() else None
    saved_step = trainer.step

    def save() -> None:
        nonlocal saved_step
        state = trainer.state()
        if metrics is not None:
            metrics.sync()  # a checkpoint of this step never comes before the rows about it
            keep, best_step = settings.save_total_limit, trainer.best.step
            checkpoint.save_checkpoint(directory, state, identity, keep, best_step=best_step)
        dist.barrier()
        saved_step = trainer.step

    def after_step(step: int) -> None:
        if trainer.is_done or step % settings.save_steps == 0 or trainer.is_at_best:
            save()

    console, heard_by = Console(stderr=True), list[Reporter]()
    answers_heard: AbstractContextManager[None] = nullcontext()
    if metrics is not None:
        display = ConsoleReporter(trainer.total_steps, trainer.step, console)
        heard_by = [metrics, display, *open_reporters(config, directory, trainer.step)]
        answers_heard = sampler.reporting(directory, trainer.step, console)
    with Reporters(*heard_by) as reporters, answers_heard:
        try:
            trainer.run(reporters, after_step, sampler)
        except KeyboardInterrupt:
            if stop.requested and not stop.at_once and trainer.step:
                if saved_step != trainer.step:
                    save()
                logger.warning("Stopped after step %d. Go on with: lorakeet train --resume -o %s", trainer.step, directory)
            raise


def choose_adapter(directory: Path, trainer: Trainer) -> None:
    """Put the best evaluation's state back where that is asked for, and say what was decided."""
    if trainer.best.is_patience_over:
        logger.info("Stopped early after step %d: %s.", trainer.step, trainer.best)
    if trainer.config.load_best_model_at_end:
        logger.info("The adapter is that of the best evaluation: %s.", trainer.best)
        path = checkpoint.checkpoint_path(directory, trainer.best.step)
        trainer.load_state(checkpoint.load_checkpoint(path))
