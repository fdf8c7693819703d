"""EVA: adapters whose A spans what their layer's inputs vary in most, on the run's own rows.

data in: a model without adapters, batches of its rows → out: for each layer that is to get an adapter the first r principal
directions of its inputs, (R, I), which become A; B starts at zero, so that the outputs stay as they were.

The directions are found batch by batch (incremental PCA) until none turns any more. Each layer keeps the rank it was given:
PEFT's redistribution of ranks (rho above 1) is refused by the configuration.
Legend: T tokens, I input width of a layer, R rank.

Source: Paischer et al. 2024, arXiv:2410.07170; Ross et al. 2008, for the incremental PCA; reference implementation: PEFT's
`initialize_lora_eva_weights`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lorakeet import progress
from lorakeet.config import LoraConfig
from lorakeet.config.lora import EvaConfig
from lorakeet.errors import ConfigError
from lorakeet.lora.targets import Target, find_targets
from lorakeet.lora.update import Update

Pass = tuple[Tensor | None, Callable[[], object]]
"""Which rows of every layer's input count (None for all), and the call that runs the model on a batch."""
_ITERATIONS = 4
_SEED = 42  # PEFT's, so that the same rows lead to the same directions

logger = logging.getLogger(__name__)


class PrincipalDirections:
    """The r directions that rows vary in most; the rows come batch by batch and are not kept."""

    def __init__(self, r: int) -> None:
        self.r = r
        self.num_rows = 0
        self.mean_I: Tensor | None = None
        self.directions_RI: Tensor | None = None
        self.values_R: Tensor | None = None
        """Singular values of all rows so far along the directions."""
        self.cosines_R: Tensor | None = None
        """How little the last batch has turned each direction."""

    def add(self, rows_TI: Tensor) -> None:
        """Take in a batch of rows; one of fewer than r rows is passed over."""
        if len(rows_TI) < self.r:
            return
        rows_TI, sum_I = rows_TI.float(), rows_TI.sum(0, dtype=torch.float64)
        before, num_rows = self.directions_RI, self.num_rows + len(rows_TI)
        if before is None or self.mean_I is None or self.values_R is None:
            mean_I = sum_I / num_rows
            rows_TI = (rows_TI - mean_I).float()
        else:
            mean_I = (self.mean_I * self.num_rows + sum_I) / num_rows
            own_mean_I = rows_TI.mean(0)
            shift_I = (self.num_rows / num_rows * len(rows_TI)) ** 0.5 * (self.mean_I - own_mean_I)
            rows_TI = torch.cat([(self.values_R[:, None] * before).double(), (rows_TI - own_mean_I).double(), shift_I[None]])
        self.num_rows, self.mean_I = num_rows, mean_I
        self.values_R, self.directions_RI = _decompose(rows_TI, self.r)
        self.cosines_R = None if before is None else torch.cosine_similarity(self.directions_RI, before)

    def have_settled(self, tau: float) -> bool:
        """Tell whether the last batch turned no direction by more than a cosine of `tau` allows."""
        return self.cosines_R is not None and bool((self.cosines_R >= tau).all())


def _decompose(rows_TI: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return the r largest singular values and their directions, of which the largest number is positive."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(_SEED)
        _, values_R, right_IR = torch.svd_lowrank(rows_TI, min(2 * r, *rows_TI.shape), niter=_ITERATIONS)
    directions_RI = right_IR[:, :r].T
    signs_R = directions_RI.gather(1, directions_RI.abs().argmax(1, keepdim=True)).sign()
    return values_R[:r], directions_RI * signs_R


def input_directions(model: nn.Module, config: LoraConfig, passes: Iterable[Pass]) -> dict[str, Tensor]:
    """Run the model until the directions of all layers have settled, and return them by the layers' paths: (R, I), float32.

    Raises: ConfigError, E-CFG-172, if a layer's input is never seen, or never has r rows that count.
    """
    tau = (config.eva_config or EvaConfig()).tau
    targets = find_targets(model, config)
    found = {module: PrincipalDirections(0) for _, module in targets}
    for target, module in targets:  # parts of one layer have one input, of which each takes as many directions as it has rank
        found[module].r = max(found[module].r, _checked_rank(target, module))
    open_layers = set(found)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for rows, run in passes:
            hooks = [module.register_forward_pre_hook(partial(_take_in, found[module], rows)) for module in open_layers]
            try:
                run()
            finally:
                for hook in hooks:
                    hook.remove()
            open_layers = {module for module in open_layers if not found[module].have_settled(tau)}
            progress.report("finding where layers' inputs vary (EVA)", len(found) - len(open_layers), len(found))
            if not open_layers:
                break
    model.train(was_training)
    unsettled = [target.path for target, module in targets if module in open_layers]
    if unsettled:
        logger.warning("EVA: the directions of %d layers, such as %s, have not settled.", len(unsettled), unsettled[0])
    return {target.path: _of_target(found[module], target) for target, module in targets}


def _take_in(directions: PrincipalDirections, rows: Tensor | None, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    rows_TI = inputs[0].flatten(0, -2)
    directions.add(rows_TI if rows is None else rows_TI[rows])


def _of_target(found: PrincipalDirections, target: Target) -> Tensor:
    if found.directions_RI is None:
        raise ConfigError(
            "E-CFG-172",
            f"EVA needs {found.r} tokens that count in one step, and saw fewer at {target.path}",
            place="peft_config.init_lora_weights",
            fix="Raise per_device_train_batch_size, or set eva_config: {rho: 1.0, use_label_mask: false}",
        )
    return found.directions_RI[: target.r].float()


def _checked_rank(target: Target, module: nn.Module) -> int:
    """Return the rank of a target; refuse a layer whose input has not as many directions.

    Raises: ConfigError, E-CFG-172.
    """
    most = getattr(module, "in_features", None)
    if most is None:
        raise ConfigError(
            "E-CFG-172",
            f"EVA needs linear layers, and {target.path} is none",
            place="peft_config.init_lora_weights",
            fix="Leave the layer out",
        )
    if target.r > most:
        raise ConfigError(
            "E-CFG-172",
            f"r is {target.r}, more than the {most} inputs of {target.path}",
            place="peft_config.r",
            fix=f"Use at most {most}",
        )
    return target.r


def check_directions(target: Target, directions: Mapping[str, Tensor] | None) -> None:
    """Refuse layers whose inputs were not looked at; before anything is changed.

    Raises: ConfigError, E-CFG-172.
    """
    if directions is None or target.path not in directions:
        raise ConfigError(
            "E-CFG-172",
            f"EVA starts with the directions of a layer's inputs, and there are none for {target.path}",
            place="inject",
            fix="Pass input_directions, from lorakeet.lora.starts.eva.input_directions",
        )


def start_with_directions(update: Update, directions_RI: Tensor) -> None:
    """Set A to the directions; B stays zero."""
    with torch.no_grad():
        update.lora_A.copy_(directions_RI)
