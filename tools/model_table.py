"""The README's table of what each model costs, computed from shapes and two measured figures.

data in: shapes of the models → out: Markdown. `python -m tools.model_table` writes it into README.md, between its marks; a
test holds that it is there. Nothing is measured here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- written by tools/model_table\.py -->\n).*?(<!-- end -->\n)", re.S)

TOKENS_A_ROW, RANK = 200, 16
MEASURED_MODEL, MEASURED_TOKENS_PER_SECOND, MEASURED_BYTES = "phi3-mini", 26.5, 9.70e9
"""docs/benchmarks.md, Phi-3-mini at full size: 16 bits, 512 tokens a step, 2 cores of a Zen 4."""
BYTES_OF_4_BITS, ADAPTER_BYTES, CHECKPOINT_BYTES = 0.516, 16, 12
"""A weight in NF4 with double quantisation; a trained number with gradient and two moments; the same in a checkpoint."""


@dataclass(frozen=True)
class Shape:
    """What decides a model's size."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    is_tied: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's four products."""
        width = self.hidden // self.heads
        qkv, gate_up = width * (self.heads + 2 * self.kv_heads), 2 * self.intermediate
        return [(self.hidden, qkv), (self.hidden, self.hidden), (self.hidden, gate_up), (self.intermediate, self.hidden)]

    @property
    def num_linear(self) -> int:
        """Weights of the decoder's products: what is quantised, and what time goes into."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def num_others(self) -> int:
        """Weights of embeddings and head, which keep 16 bits."""
        return self.vocab * self.hidden * (1 if self.is_tied else 2)

    @property
    def num_adapter(self) -> int:
        """Trained numbers at rank 16 on all linear layers."""
        return self.layers * RANK * sum(inputs + outputs for inputs, outputs in self.linears)

    def bytes(self, per_linear_weight: float) -> float:
        """Return the size of the weights."""
        return self.num_linear * per_linear_weight + 2 * self.num_others


SHAPES = {
    "phi3-mini": Shape(32064, 3072, 8192, 32, 32, 32),
    "phi3.5-mini": Shape(32064, 3072, 8192, 32, 32, 32),
    "phi4-mini": Shape(200064, 3072, 8192, 32, 24, 8, is_tied=True),
    "phi3-medium": Shape(32064, 5120, 17920, 40, 40, 10),
    "phi4": Shape(100352, 5120, 17920, 40, 40, 10),
}


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        "| Model | Weights | Download | Memory, 16 bits | Memory, 4 bits | Disk | Hours a 1,000 rows |",
        "|---|" + "---:|" * 6,
    ]
    for name, shape in SHAPES.items():
        weights = shape.bytes(2)
        in_four = shape.bytes(BYTES_OF_4_BITS)
        disk = weights + in_four + 2 * CHECKPOINT_BYTES * shape.num_adapter
        count = (shape.num_linear + shape.num_others) / 1e9
        cells = [f"{count:.1f} B", _gb(weights), _gb(weights + _rest(shape)), _gb(in_four + _rest(shape)), _gb(disk)]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_hours(shape):.1f} |")
    return "\n".join(lines) + "\n"


def _rest(shape: Shape) -> float:
    """What training takes beside the weights: adapters with their moments, and what the measured run took besides."""
    measured = SHAPES[MEASURED_MODEL]
    besides = MEASURED_BYTES - measured.bytes(2) - ADAPTER_BYTES * measured.num_adapter
    scale = shape.layers * shape.intermediate / (measured.layers * measured.intermediate)
    return ADAPTER_BYTES * shape.num_adapter + besides * scale


def _hours(shape: Shape) -> float:
    """Time goes into the products of the decoder's layers, so it grows as their weights do."""
    speed = MEASURED_TOKENS_PER_SECOND * SHAPES[MEASURED_MODEL].num_linear / shape.num_linear
    return 1000 * TOKENS_A_ROW / speed / 3600


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count < 2e10 else f"{count / 1e9:.0f} GB"


if __name__ == "__main__":
    README.write_text(
        BLOCK.sub(lambda found: found[1] + table() + found[2], README.read_text(encoding="utf-8")), encoding="utf-8"
    )
