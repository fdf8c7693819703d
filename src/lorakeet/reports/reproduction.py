"""Whether a training run that was repeated has come to the same adapter, and what its numbers mean.

data in: what two adapters say of their training, and their weights → out: Reproduction. On one kind of machine with the
same versions two runs are equal to the bit. Elsewhere sums are rounded otherwise, and the yardstick is measured: how far
two runs on this machine are apart that differ in nothing but their roundings.
"""

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lorakeet.errors import AdapterError, ConfigError
from lorakeet.files.hashing import file_sha256
from lorakeet.formatting import command, count
from lorakeet.lora.adapter import WEIGHTS_FILE, weights_path
from lorakeet.lora.tensor_file import read_tensors
from lorakeet.reports.difference import Difference, compare_runs
from lorakeet.reports.difference import describe as describe_difference
from lorakeet.reports.reported_run import ReportedRun
from lorakeet.rundir.provenance import Provenance, read_provenance

FACTOR = 10
"""How many times the yardstick still counts as rounding: its size varies by chance from pair to pair."""
_WIDTH = 80
_TELLING = 0.01
"""A yardstick beyond this part of the loss says little."""


@dataclass(frozen=True)
class Trained:
    """An adapter with the record of its training."""

    directory: Path
    record: Provenance

    @property
    def run(self) -> ReportedRun:
        """The training as reports compare it, without what may differ: paths, services, how a step is cut into passes."""
        return ReportedRun(
            name=str(self.directory),
            directory=self.directory,
            config={},
            steps=self.record.steps,
            evaluations=[],
            samples=[],
            row_losses=[],
            identity=self.record.identity,
            versions=self.record.versions,
        )


@dataclass(frozen=True)
class Distance:
    """How far two runs are apart."""

    loss: float
    """Largest difference of a logged loss, in nats."""
    step: int
    """Where that was."""
    weights: float
    """Norm of the difference of the adapters' weights, divided by the norm of the weights; 0 if all are equal to the bit."""
    num_weights: int


@dataclass(frozen=True)
class Yardstick:
    """How far two runs on this machine are apart that differ only in their roundings."""

    run: Path
    """The second of them."""
    what: str
    """What it did otherwise."""
    distance: Distance


@dataclass(frozen=True)
class Reproduction:
    """What came of repeating a run."""

    adapter: Path
    run: Path
    """The new run."""
    difference: Difference
    distance: Distance
    versions: list[tuple[str, list[str]]] = field(default_factory=list)
    """Versions and kind of machine that differ, with both values."""
    began_with: dict[str, str] = field(default_factory=dict)
    """Versions and machine that the recorded run began with, if it was resumed with others."""
    on_gpu: bool = False
    least_loss: float = math.inf
    """The smallest logged loss of the new run."""
    yardstick: Yardstick | None = None
    exceeding: tuple[int, float, float] | None = None
    """The first logged step whose losses differ by more than the yardstick allows: (step, there, here)."""

    @property
    def is_equal(self) -> bool:
        """Whether all numbers and weights are equal to the bit."""
        return self.difference.parting is None and self.distance.weights == 0

    @property
    def may_round_otherwise(self) -> bool:
        """Whether something differs that rounds sums otherwise, so that runs need not be equal to the bit."""
        return bool(self.versions or self.began_with or self.on_gpu)

    @property
    def allowed(self) -> Distance | None:
        """The distances that count as rounding; None if nothing was measured."""
        if self.yardstick is None:
            return None
        one = self.yardstick.distance
        return Distance(FACTOR * one.loss, one.step, FACTOR * one.weights, one.num_weights)

    @property
    def is_within(self) -> bool:
        """Whether the runs are no further apart than rounding takes them here."""
        allowed = self.allowed
        return allowed is not None and self.exceeding is None and self.distance.weights <= allowed.weights

    @property
    def is_reproduced(self) -> bool:
        """Whether the adapter was reproduced, to the bit or as near as rounding allows."""
        return self.is_equal or self.is_within


def read_trained(directory: Path) -> Trained:
    """Read the record of an adapter, having seen that its weights are those that were trained.

    Raises: AdapterError E-ADPT-240 or 241 without a record, 242 if the weights are others.
    """
    record = read_provenance(directory)
    sha256 = file_sha256(weights_path(directory))
    if sha256 != record.sha256:
        raise AdapterError(
            "E-ADPT-242",
            f"is not what was trained: its SHA-256 is {sha256[:12]}, was {record.sha256[:12]}",
            place=str(directory / WEIGHTS_FILE),
            fix="Name the adapter as training has left it",
        )
    return Trained(directory, record)


def refuse_own_run(adapter: Path, output: str | Path | None) -> None:
    """Raise ConfigError E-CFG-48 if a run was to be repeated in its own directory."""
    if output is not None and Path(output).resolve() == adapter.resolve().parent:
        raise ConfigError("E-CFG-48", "holds the run that is to be repeated", place=str(output), fix="Choose another directory")


def compare(recorded: Trained, repeated: Trained, run: Path) -> Reproduction:
    """Compare an adapter with the one that its training has come to now."""
    difference = compare_runs(recorded.run, repeated.run)
    return Reproduction(
        adapter=recorded.directory,
        run=run,
        difference=difference,
        distance=distance(recorded, repeated),
        versions=[(key.removeprefix("versions."), values) for key, values in difference.versions],
        began_with=recorded.record.began_with,
        on_gpu=torch.cuda.is_available(),
        least_loss=min((row["loss"] for row in repeated.record.steps), default=math.inf),
    )


def measured(found: Reproduction, recorded: Trained, repeated: Trained, other: Trained, run: Path, what: str) -> Reproduction:
    """Add the yardstick: the distance of `repeated` from `other`, which did the same with other roundings."""
    yardstick = Yardstick(run, what, distance(repeated, other))
    allowed = FACTOR * yardstick.distance.loss
    exceeding = next((both for both in _losses(recorded, repeated) if not abs(both[1] - both[2]) <= allowed), None)
    return Reproduction(**{**vars(found), "yardstick": yardstick, "exceeding": exceeding})


def distance(one: Trained, other: Trained) -> Distance:
    """Measure how far two trained adapters and their losses are apart."""
    losses = [(abs(mine - theirs), step) for step, mine, theirs in _losses(one, other)]
    largest, step = max(losses, default=(0.0, 0))
    mine, theirs = (read_tensors(side.directory / WEIGHTS_FILE)[0] for side in (one, other))
    if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
        return Distance(largest, step, math.inf, 0)
    apart = sum((mine[name].double() - theirs[name].double()).square().sum().item() for name in mine)
    norm = sum(tensor.double().square().sum().item() for tensor in mine.values())
    return Distance(largest, step, math.sqrt(apart / norm), sum(tensor.numel() for tensor in mine.values()))


def _losses(one: Trained, other: Trained) -> list[tuple[int, float, float]]:
    """Return (step, loss of one, loss of the other) of the steps that both have logged."""
    first, second = ({row["step"]: row for row in side.record.steps} for side in (one, other))
    return [(step, first[step]["loss"], second[step]["loss"]) for step in sorted(first.keys() & second.keys())]


def describe(found: Reproduction) -> list[str]:
    """Return what came of it, a line each."""
    lines = []
    if found.versions:
        lines += ["Other versions or another kind of machine:"]
        lines += [f"  {key}: {then} there, {now} here" for key, (then, now) in found.versions]
    if found.began_with:
        lines += ["The recorded run was resumed with other versions or on another machine than it began with."]
    steps = count(found.difference.num_shared_steps, "logged step")
    if found.is_equal:
        weights = f"{found.distance.num_weights:,} weights"
        return [*lines, f"Reproduced to the bit: all {weights}, and loss, gradient norm and tokens of {steps}."]
    verdict = "Reproduced, within rounding" if found.is_within else "NOT reproduced"
    lines += [f"{verdict}:"]
    if found.difference.parting is not None:
        step, name, then, now = found.difference.parting
        lines += [f"  the numbers part at step {step}: {name.replace('_', ' ')} {_number(then)} there, {_number(now)} here"]
    lines += [f"  {line}" for line in describe_difference(found.difference, ("there", "here")) if line.endswith("differs")]
    lines += _table(found)
    if found.yardstick is None:
        lines += ["Versions and machine are the same, so both runs should be equal to the bit."]
    else:
        lines += _explained(found, found.yardstick)
    if not found.is_within:
        lines += [f"The new run: {found.run}", f"Look at both: {command('report', found.run)}"]
    return lines


def _table(found: Reproduction) -> list[str]:
    """Lay the distances out, beside the yardstick if there is one."""
    columns = [found.distance] + ([found.yardstick.distance] if found.yardstick else [])
    head = [f"  {'':<42}{'this':>9}{'yardstick':>12}"] if found.yardstick else []
    return [
        *head,
        f"  {'largest difference of a logged loss':<42}" + "   ".join(f"{column.loss:>9.1e}" for column in columns),
        f"  {'difference of the weights, of their norm':<42}" + "   ".join(f"{column.weights:>9.1e}" for column in columns),
    ]


def _explained(found: Reproduction, yardstick: Yardstick) -> list[str]:
    """Say in words what the yardstick is, and what the comparison with it means."""
    said = (
        "The yardstick is how far two runs on this machine are apart that differ only in their roundings: the second "
        f"was {yardstick.what}. A sum of numbers with few digits depends on its order, and training carries that on from "
        f"step to step. Up to {FACTOR} times the yardstick counts as rounding."
    )
    lines = textwrap.wrap(said, _WIDTH)
    if yardstick.distance.loss == 0 and yardstick.distance.weights == 0:
        return [*lines, "Here both were equal to the bit, so only equal numbers could count as rounding."]
    if found.exceeding is not None:
        step, then, now = found.exceeding
        lines += [f"Beyond it from step {step} on: loss {_number(then)} there, {_number(now)} here."]
    if FACTOR * yardstick.distance.loss > _TELLING * found.least_loss:
        lines += ["This training magnifies rounding so much that the comparison says little."]
    return lines


def _number(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
