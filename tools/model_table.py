"""The README's table of what each model costs, computed from shapes and two measured figures.

data in: shapes of the models → out: Markdown. `python -m tools.model_table` writes it into README.md, between its marks; a
test holds that it is there. Nothing is measured here.
"""

import re
from pathlib import Path

from lorakeet.models.catalogue import BYTES_OF_4_BITS, MEASURED_MODEL, MODELS, Shape

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- written by tools/model_table\.py -->\n).*?(<!-- end -->\n)", re.S)

TOKENS_A_ROW = 200
MEASURED_TOKENS_PER_SECOND = 26.5
"""docs/benchmarks.md, Phi-3-mini at full size: 16 bits, 512 tokens a step, 2 cores of a Zen 4."""
CHECKPOINT_BYTES = 12
"""A trained number with its two moments in a checkpoint."""
SHOWN = ("phi3-mini", "phi3.5-mini", "phi4-mini", "phi3-medium", "phi4")
SHAPES = {name: MODELS[name].shape for name in SHOWN}


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
        count = shape.num_params / 1e9
        memory = (shape.training_bytes(per_weight) for per_weight in (2, BYTES_OF_4_BITS))
        cells = [f"{count:.1f} B", _gb(weights), *map(_gb, memory), _gb(disk)]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_hours(shape):.1f} |")
    return "\n".join(lines) + "\n"


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
