"""What must hold before any figure counts: our steps compute what PEFT's compute, and no document sees another.

usage: python -m benchmarks.gates MODEL_DIR ROWS.json R TARGETS

data in: a model directory and a workload's rows → out: one JSON line of gates, each a value, a limit and a verdict;
exit status 1 where one fails. Both models start from the same adapter, B included, and take the same steps on the same
rows, ours compiled as when it is measured. fp32 is slow on a CPU: few rows are used, cut where they are long, and what
was used is part of the output.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.system import LR, learned_losses, padded, peft_model, target_names
from benchmarks.workloads import read_rows
from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.pack import pack
from lorakeet.lora.inject import inject, trained_updates
from lorakeet.machine.hardware import best_dtype
from lorakeet.models.decoder import CausalLM
from lorakeet.models.weights import load_model
from lorakeet.objectives.sft import pack_for
from lorakeet.training.loop import train_step
from lorakeet.training.optimizer import build_optimizer

NUM_ROWS, TOKEN_BUDGET = 4, 1536
"""Rows that steps are taken on, and the tokens they may have together, so that fp32 takes seconds."""
LOSS_ROWS, LOSS_TOKENS = 16, 4096
"""The same for token losses, which need no backward pass. Rounding has a heavy tail: over 400 learned tokens PEFT's own
distance from fp32 lay between 0.065 and 0.089, and a ratio of two such numbers says little."""
FP32_LOSS = 1e-5
LEAST_COSINE = 0.999
BF16_MARGIN, BF16_GRADIENT_MARGIN = 1.1, 1.3
"""How much further from fp32 than PEFT's bf16 ours may be: rounding errors are random, and so are their sums. No bf16
gradient of this depth reaches the cosine asked of fp32, PEFT's neither."""


@dataclass(frozen=True)
class Gate:
    """One condition and how it came out."""

    name: str
    value: float
    limit: str
    holds: bool


@dataclass(frozen=True)
class Computed:
    """What one system computed on the gate's rows."""

    losses: list[float]
    """Mean loss of each optimizer step."""
    row_losses: Tensor
    """Loss of every learned token before the first step, row by row; of none if bf16 is not measured."""
    gradient: Tensor
    """The first step's, of all adapter parameters, laid end to end in the order of our names."""


def gate_rows(rows: Sequence[Example], num_rows: int = NUM_ROWS, token_budget: int = TOKEN_BUDGET) -> list[Example]:
    """Take the first rows, each cut to its share of the budget; a row keeps at least one learned token."""
    taken = list(rows[: num_rows if len(rows[0].input_ids) <= token_budget // 2 else 2])
    share = token_budget // len(taken)
    return [_cut(row, max(share, row.spans[0][0] + 16)) for row in taken]


def _cut(row: Example, length: int) -> Example:
    spans = tuple((start, min(end, length)) for start, end in row.spans if start < length)
    return replace(row, input_ids=row.input_ids[:length], spans=spans)


def check_gates(
    model_dir: Path, rows: Sequence[Example], r: int, targets: list[str], measured_in: torch.dtype = torch.bfloat16
) -> list[Gate]:
    """Compute the rows with both systems in fp32 and in the type that is measured, and compare."""
    loss_rows = [] if measured_in == torch.float32 else gate_rows(rows, LOSS_ROWS, LOSS_TOKENS)
    rows = gate_rows(rows)
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    adapter = _drawn_adapter(model_dir, r, targets)
    ours: dict[torch.dtype, Computed] = {}
    theirs: dict[torch.dtype, Computed] = {}
    gates = []
    for dtype in dict.fromkeys((torch.float32, measured_in)):
        model = our_model(model_dir, r, targets, adapter, dtype)
        gates += _no_leak(model, rows, dtype)
        ours[dtype] = _compute_ours(model, loss_rows, halves)
        del model
        theirs[dtype] = _compute_peft(_peft_with(model_dir, r, targets, adapter, dtype), list(adapter), loss_rows, halves)
    return [*_compared(ours, theirs), *gates]


def _compared(ours: dict[torch.dtype, Computed], theirs: dict[torch.dtype, Computed]) -> list[Gate]:
    exact, low = torch.float32, torch.bfloat16
    truth = theirs[exact]
    steps = zip(ours[exact].losses, truth.losses, strict=True)
    loss_error = max(abs(our - their) / their for our, their in steps)
    norm = min(ours[dtype].gradient.norm().item() for dtype in ours)
    cosine = _cosine(ours[exact].gradient, truth.gradient)
    gates = [
        Gate("fp32: step losses against PEFT's, relative", loss_error, f"≤ {FP32_LOSS:g}", loss_error <= FP32_LOSS),
        Gate("fp32: cosine of the gradient with PEFT's", cosine, f"≥ {LEAST_COSINE}", cosine >= LEAST_COSINE),
        Gate("gradient norm", norm, "> 0", norm > 0),
    ]
    if low not in ours:
        return gates
    our_rms, peft_rms = (_rms(x[low].row_losses - truth.row_losses) for x in (ours, theirs))
    low_error = max(abs(our - their) for our, their in zip(ours[low].losses, truth.losses, strict=True))
    our_angle, peft_angle = (math.sqrt(max(0.0, 1 - _cosine(x[low].gradient, truth.gradient) ** 2)) for x in (ours, theirs))
    return [
        *gates,
        Gate(
            "bf16: token losses' distance from fp32, rms",
            our_rms,
            f"≤ {BF16_MARGIN * peft_rms:.3g} ({BF16_MARGIN} × PEFT's)",
            our_rms <= BF16_MARGIN * peft_rms,
        ),
        Gate("bf16: step losses' distance from fp32", low_error, f"≤ {peft_rms:.3g}", low_error <= peft_rms),
        Gate(
            "bf16: sine of the gradient's angle to fp32's",
            our_angle,
            f"≤ {BF16_GRADIENT_MARGIN * peft_angle:.3g} ({BF16_GRADIENT_MARGIN} × PEFT's)",
            our_angle <= BF16_GRADIENT_MARGIN * peft_angle,
        ),
    ]


def our_model(model_dir: Path, r: int, targets: list[str], adapter: dict[str, Tensor] | None, dtype: torch.dtype) -> CausalLM:
    """Load ours as it is measured, with `adapter` in it where one is given."""
    model = load_model(model_dir, dtype=dtype)
    torch.manual_seed(0)
    inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets))
    for name, value in (adapter or {}).items():
        pairs(model)[name].data.copy_(value)
    model.compile_layers()
    return model.train()


def pairs(model: CausalLM) -> dict[str, nn.Parameter]:
    """Return every A and B by the names that the model's checkpoint has for their layers."""
    return {f"{path}.{name}": getattr(update, name) for path, update in trained_updates(model) for name in ("lora_A", "lora_B")}


def _drawn_adapter(model_dir: Path, r: int, targets: list[str]) -> dict[str, Tensor]:
    """Draw A and B, both non-zero and of numbers that bf16 holds exactly."""
    model = our_model(model_dir, r, targets, None, torch.float32)
    generator = torch.Generator().manual_seed(1)
    adapter = {}
    for name, param in pairs(model).items():
        scale = 0.02 if "lora_B" in name else param.std().item()
        adapter[name] = (torch.randn(param.shape, generator=generator) * scale).bfloat16().float()
    return adapter


def _peft_with(model_dir: Path, r: int, targets: list[str], adapter: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    model = peft_model(model_dir, r, targets, dtype, autocast_adapter_dtype=False)
    for name, value in adapter.items():
        model.get_parameter(_peft_name(name)).data.copy_(value)
    return model.train()


def _peft_name(name: str) -> str:
    return f"base_model.model.{name}.default.weight"


def _compute_ours(model: CausalLM, loss_rows: list[Example], halves: list[list[Example]]) -> Computed:
    with torch.no_grad():
        row_losses = [_token_losses(model, [row]) for row in loss_rows]
    params = list(pairs(model).values())
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=LR, weight_decay=0.0))
    losses, gradient = [], torch.empty(0)
    for half in halves:
        losses.append(train_step(model, [pack_for(model, half)], optimizer, 0).loss)
        if not gradient.numel():
            gradient = _flat_gradient(params)
    return Computed(losses, torch.cat([torch.empty(0), *row_losses]), gradient)


def _token_losses(model: CausalLM, rows: Sequence[Example], *, share: bool = False) -> Tensor:
    """Compute the loss of every learned token by PyTorch's own functions, from the hidden states of our layers."""
    batch = pack(rows, share_prefixes=share)
    hidden_SD = model(
        batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S, parents=batch.parents
    )
    return F.cross_entropy(model.lm_head(hidden_SD).float(), batch.targets_S, reduction="none")


def _compute_peft(model: nn.Module, names: list[str], loss_rows: list[Example], halves: list[list[Example]]) -> Computed:
    params = [model.get_parameter(_peft_name(name)) for name in names]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)
    row_losses, losses, gradient = [], [], torch.empty(0)
    with torch.no_grad():
        for row in loss_rows:
            row_losses.append(learned_losses(model, *padded([row])))
    for half in halves:
        inputs, labels = padded(half)
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        if not gradient.numel():
            gradient = _flat_gradient(params)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return Computed(losses, torch.cat([torch.empty(0), *row_losses]), gradient)


def _no_leak(model: CausalLM, rows: list[Example], dtype: torch.dtype) -> list[Gate]:
    """Change the answer of the first row, which itself is not learned: loss and gradient stay equal to the bit.

    The answer, so that what rows share stays shared and the stream keeps its shape.
    """
    silent = replace(rows[0], spans=())
    answer = range(*rows[0].spans[-1])
    changed_ids = [(token + 7) % 1000 + 3 if i in answer else token for i, token in enumerate(silent.input_ids)]
    changed = replace(silent, input_ids=changed_ids)
    results = []
    for first in (silent, changed):
        model.zero_grad(set_to_none=True)
        losses = _token_losses(model, [first, *rows[1:]], share=True)
        losses.sum().backward()
        params = [param for param in model.parameters() if param.requires_grad]
        results.append((losses.detach(), _flat_gradient(params)))
    model.zero_grad(set_to_none=True)
    (losses, gradient), (new_losses, new_gradient) = results
    differences = float((losses != new_losses).sum() + (gradient != new_gradient).sum())
    # That the change was felt at all: the row itself, learned, must notice it.
    with torch.no_grad():
        own = [_token_losses(model, [replace(row, spans=rows[0].spans)]) for row in (silent, changed)]
    name = str(dtype).removeprefix("torch.")
    is_felt = not torch.equal(*own)
    return [
        Gate(
            f"{name}: losses and gradients that another document's change reaches",
            differences,
            "= 0",
            differences == 0 and is_felt and len(losses) > 0,
        )
    ]


def _flat_gradient(params: list[nn.Parameter]) -> Tensor:
    return torch.cat([param.grad.flatten().float() for param in params if param.grad is not None])


def _cosine(a: Tensor, b: Tensor) -> float:
    return (a.double() @ b.double() / (a.double().norm() * b.double().norm())).item()


def _rms(x: Tensor) -> float:
    return x.pow(2).mean().sqrt().item()


def main() -> None:
    """Check, print, and exit with 1 where a gate fails."""
    model_dir, file, r, targets = sys.argv[1:]
    rows = read_rows(Path(file))
    gates = check_gates(Path(model_dir), rows, int(r), target_names(Path(model_dir), targets), best_dtype("cpu"))
    used = gate_rows(rows)
    print(
        json.dumps(
            {
                "rows": f"{len(used)} rows, {sum(len(row.input_ids) for row in used):,} tokens, whole model",
                "gates": [asdict(gate) for gate in gates],
            }
        )
    )
    sys.exit(0 if all(gate.holds for gate in gates) else 1)


if __name__ == "__main__":
    main()
