"""The one training loop.

data in: a model with adapters, examples, the training configuration → out: trained adapters in the model, rows
of metrics for whoever reports them, and checkpoints. Each optimizer step is

    micro-batches → packed streams → sum of losses / supervised tokens of the whole step → gradient → AdamW

so that every supervised token of a step weighs the same, however the step is cut into micro-batches and shared by
processes.
What surrounds the loop, from configuration to adapter, is in run.py.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakeet import dist, progress
from lorakeet.config import TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.order import epoch_order, iterate_steps, steps_per_epoch, total_steps
from lorakeet.data.pack import PackedBatch, fill_rows
from lorakeet.errors import CheckpointError, TrainingError
from lorakeet.evaluation.perplexity import EvalLoss, evaluate_loss
from lorakeet.formatting import command
from lorakeet.machine.peak_memory import peak_memory_bytes
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import pack_for, packed_loss
from lorakeet.rundir.checkpoint import Counts, TrainerState, save_checkpoint
from lorakeet.rundir.metrics_file import JsonlReporter
from lorakeet.rundir.row_ledger import RowLedger
from lorakeet.rundir.rows import EvaluationRow, StepRow
from lorakeet.training.best_evaluation import BestEvaluation
from lorakeet.training.optimizer import build_optimizer, inference_weights, set_learning_rate
from lorakeet.training.optimizer_state import give_optimizer, give_params, take_optimizer
from lorakeet.training.parallel import (
    broadcast_params,
    gather_random_states,
    seed_process,
    set_random_states,
    shared,
    without_sync,
)
from lorakeet.training.reporting import Reporters
from lorakeet.training.rng import get_rng_states, set_rng_states
from lorakeet.training.samples import Sampler
from lorakeet.training.schedule import check_schedule, learning_rate
from lorakeet.training.stopping import StopRequest

Objective = Callable[[CausalLM, PackedBatch], torch.Tensor]
"""What a step minimises: model, batch → sum of losses, fp32, that gradients flow back from."""
_MARKED = 256  # units of an epoch whose order stands for that of all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutcome:
    """The numbers of one optimizer step."""

    loss: float
    """Mean loss of the step's supervised tokens, in nats."""
    grad_norm: float
    """Norm of the step's gradient before clipping."""
    num_tokens: int
    num_supervised_tokens: int


def num_steps(config: TrainingConfig, num_rows: int) -> tuple[int, int]:
    """Return (steps of an epoch, steps of the run), as the loader counts them."""
    batch, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    split = {"batch_size": batch, "grad_accum_steps": accumulated, "world_size": dist.world_size()}
    per_epoch = steps_per_epoch(num_rows, **split)
    total = total_steps(
        num_rows, **split, num_epochs=config.num_train_epochs, max_steps=config.max_steps if config.max_steps > 0 else None
    )
    return per_epoch, total


def train_step(
    model: CausalLM,
    batches: Sequence[PackedBatch],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    stop: StopRequest | None = None,
    *,
    objective: Objective = packed_loss,
) -> StepOutcome:
    """Take one optimizer step over all `batches` of all processes, weighing every supervised token the same.

    `objective` sums the losses of a batch, which the step divides by the supervised tokens of all.
    Raises: TrainingError if loss or gradient is not finite, KeyboardInterrupt if `stop` came before the
    gradient was whole; the parameters are then as they were.
    """
    counts = sum(batch.num_supervised_tokens for batch in batches), sum(batch.num_tokens for batch in batches)
    supervised, num_tokens = map(int, dist.totals(*counts))
    params = [param for group in optimizer.param_groups for param in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros(())
    for i, batch in enumerate(batches):
        is_last = i == len(batches) - 1
        with stop.droppable(together=True) if stop else nullcontext(), nullcontext() if is_last else without_sync(model):
            loss_sum = objective(model, batch)
            # A pass that only keeps company with the other processes' weighs nothing.
            share = loss_sum / (supervised if batch.num_supervised_tokens else math.inf)
            if not share.requires_grad:
                raise TrainingError("E-TRAIN-17", "no gradient reaches any parameter")
            share.backward()
        loss = loss + share.detach().cpu()
    grad_norm = torch.nn.utils.clip_grad_norm_(params, max_grad_norm or math.inf)
    outcome = StepOutcome(
        loss=torch.stack(dist.gather(loss)).sum().item(),
        grad_norm=grad_norm.item(),
        num_tokens=num_tokens,
        num_supervised_tokens=supervised,
    )
    if math.isfinite(loss.item()) and not math.isfinite(outcome.loss):
        dist.barrier()  # the process whose rows did it says so, and ends this wait by ending
    for name, value in (("loss", outcome.loss), ("gradient norm", outcome.grad_norm)):
        if not math.isfinite(value):
            raise TrainingError("E-TRAIN-15", f"the {name} is {value}", fix="Lower learning_rate, or train with bf16: false")
    optimizer.step()
    return outcome


class Saver:
    """Writes a run's checkpoints; every process calls it, the main one writes."""

    def __init__(
        self, run_directory: Path, identity: Mapping[str, str], metrics: JsonlReporter | None, keep: int | None
    ) -> None:
        """`metrics` is forced to disk before each checkpoint; None if this process writes nothing. `keep` is how many stay."""
        self.run_directory, self.identity, self.metrics, self.keep = run_directory, identity, metrics, keep
        self._saved_step: int | None = None

    def save(self, trainer: "Trainer") -> None:
        """Write a checkpoint of the trainer's step."""
        state = trainer.state()
        if trainer.ledger is not None:
            trainer.ledger.write(sync=True)
        if self.metrics is not None:
            self.metrics.sync()
            save_checkpoint(self.run_directory, state, self.identity, self.keep, best_step=trainer.best.step)
        dist.barrier()
        logger.info("Checkpoint of step %d saved.", trainer.step)
        self._saved_step = trainer.step

    def save_stopped(self, trainer: "Trainer") -> None:
        """Save if the user has stopped the run, unless that step is saved, and say how to go on."""
        resume = command("train", "--resume", "-o", self.run_directory)
        if trainer.step == 0:
            logger.warning("Stopped before the first step was done. Begin again with: %s", resume)
            return
        if self._saved_step != trainer.step and trainer.step > trainer.first_step:
            self.save(trainer)
        logger.warning("Stopped after step %d of %d. Go on with: %s", trainer.step, trainer.total_steps, resume)


class Trainer:
    """Trains a model's adapters on examples, step by step.

    `step` counts finished optimizer steps. Everything that decides what comes next is in the model's adapters, the
    optimizer, `step` and torch's random state: the order of the rows is a function of seed and step.
    """

    def __init__(
        self,
        model: CausalLM,
        config: TrainingConfig,
        train_examples: Sequence[Example],
        held_out_examples: Sequence[Example] = (),
        stop: StopRequest | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.stop = stop or StopRequest()
        self.train_examples, self.held_out_examples = train_examples, held_out_examples
        self.named_params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        broadcast_params(self.named_params)
        seed_process(config.seed, step=0)
        self.shared = shared(model)
        self.optimizer = build_optimizer(model, config)
        self.rows = self._fill_rows()
        num_rows = len(train_examples) if self.rows is None else len(self.rows)
        self.steps_per_epoch, self.total_steps = num_steps(config, num_rows)
        check_schedule(config, self.total_steps)
        self.step = self.first_step = 0
        """Finished steps, and those that were finished when this process began."""
        self.num_tokens = 0
        self.num_supervised_tokens = 0
        self.elapsed_s = 0.0
        self.train_seconds = 0.0
        """Time of the steps of this process, without evaluations and saving."""
        self.ledger: RowLedger | None = None
        """Keeps the loss of every row, if there is one."""
        self.best = BestEvaluation.for_config(config)
        self._window = _Window()
        self._begin = time.perf_counter()
        self._is_evaluated = False

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train: after the last step, or where better evaluations stayed away."""
        return self.step == self.total_steps or self.best.is_patience_over

    @property
    def is_at_best(self) -> bool:
        """Whether this step's evaluation is the best so far, and somebody has asked for the best."""
        is_wanted = self.config.load_best_model_at_end or self.config.early_stopping_patience is not None
        return is_wanted and self.best.step == self.step

    @property
    def evaluation_every(self) -> int | None:
        """Evaluate after so many steps and after the last one; None for never."""
        settings = self.config
        return {"no": None, "steps": settings.eval_steps, "epoch": self.steps_per_epoch}[settings.eval_strategy]

    def run(
        self,
        reporters: Reporters,
        after_step: Callable[[int], None] | None = None,
        sampler: Sampler | None = None,
        saver: Saver | None = None,
    ) -> None:
        """Train from the present step until done, and save on the way.

        Args:
            reporters: receive every row.
            after_step: called with each finished step, last of all.
            sampler: answers its questions at every evaluation.
            saver: writes the checkpoints.
        Raises: KeyboardInterrupt if `stop` was requested; `state` then gives the last finished step, which is saved
            unless a second signal has come.
        """
        self.model.train()
        try:
            if self._is_evaluation_missing():
                self._evaluate(reporters, sampler)
                # A checkpoint of this step was written before its evaluation, and does not know of it.
                if saver is not None and self.step > 0 and self._is_save_due():
                    saver.save(self)
            if self.is_done:
                return
            self._begin = time.perf_counter() - self.elapsed_s
            for micro_batches in self._micro_batches():
                row = self._next_step(micro_batches)
                reporters.step(row)
                if self._is_log_due():
                    reporters.log(row)
                    self._window.clear()
                    if self.ledger is not None:
                        self.ledger.write()
                if self._is_evaluation_due():
                    self._evaluate(reporters, sampler)
                # After all rows of this step, so that a checkpoint never knows of a row that is not on disk.
                if saver is not None and self._is_save_due():
                    saver.save(self)
                if after_step is not None:
                    after_step(self.step)
                if self.is_done:
                    return
                self.stop.check()
        except KeyboardInterrupt:
            if saver is not None and self.stop.requested and not self.stop.at_once:
                saver.save_stopped(self)
            raise

    def _next_step(self, micro_batches: list[list[Example]]) -> StepRow:
        """Take the next optimizer step and count it."""
        start = time.perf_counter()
        rate = learning_rate(self.step, self.total_steps, self.config)
        set_learning_rate(self.optimizer, rate)
        outcome = self._guarded_step(micro_batches)
        self.step += 1
        if self.ledger is not None:
            self.ledger.end_step(self.step, 1 + (self.step - 1) // self.steps_per_epoch, micro_batches)
        self._is_evaluated = False
        self.num_tokens += outcome.num_tokens
        self.num_supervised_tokens += outcome.num_supervised_tokens
        now = time.perf_counter()
        self.train_seconds += now - start
        self.elapsed_s = now - self._begin
        self._window.add(outcome, now - start)
        return StepRow(
            step=self.step,
            epoch=self._epoch,
            loss=self._window.loss,
            grad_norm=outcome.grad_norm,
            learning_rate=rate,
            num_tokens=self.num_tokens,
            num_supervised_tokens=self.num_supervised_tokens,
            tokens_per_second=round(self._window.tokens_per_second, 1),
            elapsed_s=round(self.elapsed_s, 3),
            peak_memory_bytes=peak_memory_bytes(),
            seconds_left=(self.total_steps - self.step) * self._window.pace,
        )

    @property
    def _epoch(self) -> float:
        return round(self.step / self.steps_per_epoch, 4)

    def _is_log_due(self) -> bool:
        """Log every so many steps, the last step, and one that an evaluation may make the last."""
        may_be_last = self.config.early_stopping_patience is not None and self._is_evaluation_due()
        return self.step % self.config.logging_steps == 0 or self.step == self.total_steps or may_be_last

    def _is_save_due(self) -> bool:
        return self.is_done or self.step % self.config.save_steps == 0 or self.is_at_best

    def _is_evaluation_missing(self) -> bool:
        """Evaluate before the first step, and where a run stopped between a step and its evaluation."""
        return not self._is_evaluated and (self.step == 0 or self._is_evaluation_due())

    @property
    def checkpoint_bytes(self) -> int:
        """Estimate the size of a checkpoint: every parameter in fp32, with at most two moments."""
        return 3 * 4 * sum(param.numel() for param in self.named_params.values())

    def state(self) -> TrainerState:
        """Return everything that decides how training goes on, as references to the live tensors.

        Every process must call it at the same time; all get the same, the random states of all included.
        """
        moments, values = take_optimizer(self.optimizer, self.named_params)
        counts = Counts(
            step=self.step,
            num_tokens=self.num_tokens,
            num_supervised_tokens=self.num_supervised_tokens,
            elapsed_s=self.elapsed_s,
            is_evaluated=self._is_evaluated,
            window=self._window.sums,
            cursor=self._cursor(),
            best=self.best.state(),
            num_processes=dist.world_size(),
        )
        params = {name: param.detach() for name, param in self.named_params.items()}
        return TrainerState(params, moments, gather_random_states(), counts, values)

    def load_state(self, state: TrainerState) -> None:
        """Go on where `state` was taken."""
        give_params(self.named_params, state.params)
        give_optimizer(self.optimizer, self.named_params, state.moments, state.optimizer)
        counts = state.counts
        self.step = self.first_step = counts.step
        self.num_tokens = counts.num_tokens
        self.num_supervised_tokens, self.elapsed_s = counts.num_supervised_tokens, counts.elapsed_s
        self._is_evaluated = counts.is_evaluated
        self._window.sums = counts.window
        self.best.load_state(counts.best)
        seed_process(self.config.seed, self.step)
        set_random_states(state.rng)
        if counts.num_processes != dist.world_size():
            logger.warning(
                "%d processes go on where %d stopped: the same rows in every step, and results equal to rounding "
                "(dropout, if any, draws anew).",
                dist.world_size(),
                counts.num_processes,
            )
        if counts.cursor != self._cursor():
            raise CheckpointError(
                "E-CKPT-62",
                f"its place in the data is {counts.cursor}, here it would be {self._cursor()}",
                place=f"step {self.step}",
                fix="Resume with what the run began with, or start a new run",
            )

    def _cursor(self) -> dict[str, Any]:
        """Return where in the data the next step is, and mark the order it follows; no micro-batch is ever half done."""
        epoch, index = divmod(self.step, self.steps_per_epoch)
        num_units = len(self.train_examples) if self.rows is None else len(self.rows)
        first = epoch_order(num_units, self.config.seed, epoch)[:_MARKED]
        marked = first if self.rows is None else [self.rows[unit] for unit in first]
        order = hashlib.sha256(repr(marked).encode()).hexdigest()[:12]
        return {"epoch": epoch, "step_of_epoch": index, "order": order}

    def inference_weights(self) -> AbstractContextManager[None]:
        """Hold the weights to evaluate and to save in the model, where the optimizer trains at others."""
        return inference_weights(self.optimizer)

    def _micro_batches(self) -> Iterator[list[list[Example]]]:
        return iterate_steps(
            self.train_examples,
            batch_size=self.config.per_device_train_batch_size,
            grad_accum_steps=self.config.gradient_accumulation_steps,
            seed=self.config.seed,
            max_steps=self.total_steps,
            start_step=self.step,
            rank=dist.rank(),
            world_size=dist.world_size(),
            rows=self.rows,
        )

    def _fill_rows(self) -> list[list[int]] | None:
        """Group the examples into rows of max_length tokens where the configuration says so."""
        if not self.config.packing:
            return None
        assert self.config.max_length is not None  # the configuration saw to it
        return fill_rows([len(example.input_ids) for example in self.train_examples], self.config.max_length)

    def _guarded_step(self, micro_batches: list[list[Example]]) -> StepOutcome:
        """Take a step, or none where it is stopped; the first one proves that a gradient reaches every adapter."""
        config, noise_alpha = self.config, self.config.neftune_noise_alpha or 0.0
        random_states = get_rng_states()
        batches = [self._pack(examples, is_noisy=noise_alpha > 0) for examples in micro_batches]
        try:
            outcome = train_step(
                self.shared,
                batches,
                self.optimizer,
                config.max_grad_norm,
                self.stop,
                objective=partial(
                    packed_loss,
                    label_smoothing=config.label_smoothing_factor,
                    noise_alpha=noise_alpha,
                    on_losses=None if self.ledger is None else self.ledger.add,
                ),
            )
        except KeyboardInterrupt:
            if self.ledger is not None:
                self.ledger.drop()
            set_rng_states(random_states)
            raise
        except TrainingError as error:
            places = ", ".join(example.place for examples in micro_batches for example in examples)
            raise TrainingError(
                error.code, f"{error.message} in the step on rows {places}", place=f"step {self.step + 1}", fix=error.fix
            ) from None
        if self.step == 0:
            check_gradients(self.named_params)
        check_weights(self.named_params, self.step + 1)
        return outcome

    def _pack(self, examples: list[Example], *, is_noisy: bool) -> PackedBatch:
        """Pack a micro-batch; an empty one becomes a pass that weighs nothing, beside those of other processes."""
        if examples:
            return pack_for(self.model, examples, is_noisy=is_noisy)
        company = pack_for(self.model, self.train_examples[:1], is_noisy=is_noisy)
        return replace(company, num_supervised_tokens=0, num_tokens=0)

    def _is_evaluation_due(self) -> bool:
        every = self.evaluation_every
        return every is not None and (self.step % every == 0 or self.step == self.total_steps)

    def _evaluate(self, reporters: Reporters, sampler: Sampler | None) -> None:
        """Measure the held-out loss and let the model answer; report both only when both are whole."""
        if self.config.eval_strategy == "no":
            return
        with self.inference_weights(), self.stop.droppable(together=True):
            result = self._held_out_loss() if self.held_out_examples else None
            answers = sampler.sample(self.model, self.step) if sampler else []
        if result is not None:
            row = EvaluationRow(
                step=self.step, epoch=self._epoch, eval_loss=result.loss, num_supervised_tokens=result.num_supervised_tokens
            )
            reporters.log(row)
            if self.step > 0:  # an untrained model is no choice
                self.best.add(row)
        for answer in answers:
            reporters.log(answer)
        self._is_evaluated = True

    def _evaluated(self, done: int, total: int) -> None:
        progress.report("evaluating held-out rows", done, total)
        if dist.is_shared():
            self.stop.check()

    def _held_out_loss(self) -> EvalLoss:
        """Compute the held-out loss.

        Raises: TrainingError if it is not finite.
        """
        result = evaluate_loss(
            self.model, self.held_out_examples, batch_size=self.config.per_device_eval_batch_size, on_progress=self._evaluated
        )
        if not math.isfinite(result.loss):
            raise TrainingError(
                "E-TRAIN-15",
                f"the held-out loss is {result.loss}",
                place=f"step {self.step}",
                fix="Lower learning_rate, or train with bf16: false",
            )
        return result


def check_gradients(named_params: dict[str, torch.nn.Parameter]) -> None:
    """Raise TrainingError if the first step left a parameter without a gradient.

    lora_A's own gradient is zero as long as lora_B is, and that of single tokens if none of them is in the step, so these
    need only exist; every other must be non-zero.
    """
    may_be_zero = ("lora_A", "lora_tokens")
    dead = [
        name
        for name, param in named_params.items()
        if param.grad is None or not (any(part in name for part in may_be_zero) or param.grad.any())
    ]
    if dead:
        names = ", ".join(dead[:5])
        raise TrainingError("E-TRAIN-17", f"no gradient reaches {len(dead)} of {len(named_params)} parameters: {names}")


def check_weights(named_params: dict[str, torch.nn.Parameter], step: int) -> None:
    """Raise TrainingError if a step has left a trained weight that is not finite; what is saved is older."""
    finite = torch.stack([torch.isfinite(param).all() for param in named_params.values()])
    if not finite.all():
        bad = [name for name, is_finite in zip(named_params, finite.tolist(), strict=True) if not is_finite]
        raise TrainingError(
            "E-TRAIN-15",
            f"{len(bad)} weights are not finite, for example {bad[0]}",
            place=f"step {step}",
            fix="Lower learning_rate, and resume from the last checkpoint",
        )


class _Window:
    """The steps since the last logged row."""

    def __init__(self) -> None:
        self.clear()
        self._recent: list[float] = []

    def clear(self) -> None:
        self._loss_sum, self._supervised, self._tokens, self._seconds = 0.0, 0, 0, 0.0

    @property
    def sums(self) -> tuple[float, int, int, float]:
        """All that a resumed run needs to write the same row."""
        return self._loss_sum, self._supervised, self._tokens, self._seconds

    @sums.setter
    def sums(self, values: tuple[float, int, int, float]) -> None:
        self._loss_sum, self._supervised, self._tokens, self._seconds = values

    def add(self, outcome: StepOutcome, seconds: float) -> None:
        self._loss_sum += outcome.loss * outcome.num_supervised_tokens
        self._supervised += outcome.num_supervised_tokens
        self._tokens += outcome.num_tokens
        self._seconds += seconds
        self._recent = [*self._recent[-20:], seconds]

    @property
    def loss(self) -> float:
        return self._loss_sum / self._supervised

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds

    @property
    def pace(self) -> float:
        """Seconds that a step to come will take: the median, since the first one compiles."""
        return sorted(self._recent)[len(self._recent) // 2]
