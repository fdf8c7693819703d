"""What an adapter is: its rank, layers, size, base, how strong it is where, where it comes from, who will take it.

data in: a run or an adapter directory → out: an Inspection. Reads the adapter alone, not its base model.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakeet.adapters.adapter_file import AdapterFile, read_adapter
from lorakeet.adapters.consumers import accepted_by
from lorakeet.files.hashing import file_sha256
from lorakeet.formatting import count, size
from lorakeet.lora.adapter import WEIGHTS_FILE

_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Inspection:
    """What can be said of an adapter."""

    directory: Path
    base_name: str | None
    base_hash: str | None
    """Fingerprint of the base model's weights; None if another tool wrote the adapter."""
    ranks: dict[int, int]
    """How many layers have which rank."""
    scalings: dict[float, int]
    """How many layers are scaled by how much."""
    use_rslora: bool
    use_dora: bool
    targets: list[str]
    """Last parts of the adapted layers' names."""
    num_layers: int
    num_parameters: int
    num_bytes: int
    dtypes: list[str]
    others: list[str]
    """What it holds beside LoRA: saved modules, biases."""
    norms: dict[str, float]
    """Frobenius norm of each layer's update."""
    provenance: dict[str, Any]
    sha256: str
    accepted_by: dict[str, str]

    @property
    def untrained(self) -> list[str]:
        """Layers whose update is zero."""
        return [path for path, norm in self.norms.items() if norm == 0]


def inspect(path: str | Path) -> Inspection:
    """Look into the adapter of a run or a directory.

    Raises: AdapterError, as `read_adapter`.
    """
    adapter = read_adapter(path)
    file = adapter.directory / WEIGHTS_FILE
    pairs = adapter.pairs
    return Inspection(
        directory=adapter.directory,
        base_name=adapter.base_name,
        base_hash=adapter.base_hash,
        ranks=_counted(pair.r for pair in pairs.values()),
        scalings=_counted(pair.scaling for pair in pairs.values()),
        use_rslora=adapter.config.use_rslora,
        use_dora=adapter.has_dora,
        targets=sorted({path.rpartition(".")[2] for path in pairs}),
        num_layers=len(pairs),
        num_parameters=_num_parameters(adapter),
        num_bytes=file.stat().st_size,
        dtypes=sorted({str(pair.A.dtype).removeprefix("torch.") for pair in pairs.values()}),
        others=list(adapter.others),
        norms={path: pair.norm() for path, pair in pairs.items()},
        provenance={key: value for key, value in adapter.note.items() if key != "base_hash"},
        sha256=file_sha256(file),
        accepted_by=accepted_by(adapter),
    )


def describe(found: Inspection) -> list[str]:
    """Return what was found, a line each."""
    what = ", ".join(f"{path.rpartition('.')[2]}" for path in found.others[:3])
    lines = [
        f"adapter     {found.directory} ({size(found.num_bytes)}, sha256 {found.sha256[:16]}…)",
        f"base        {found.base_name or 'not named'}" + (f" (weights {found.base_hash[:16]}…)" if found.base_hash else ""),
        f"rank        {_counts(found.ranks)}; scaling {_counts(found.scalings)}"
        + (" (rsLoRA)" if found.use_rslora else "")
        + (", DoRA" if found.use_dora else ""),
        f"layers      {found.num_layers}: {', '.join(found.targets)}",
        f"parameters  {found.num_parameters:,} in {', '.join(found.dtypes)}",
    ]
    lines += [f"besides     {len(found.others)} tensors of saved modules and biases ({what})"] if found.others else []
    lines += [f"{key:<11} {value}" for key, value in found.provenance.items()]
    lines += ["", "Norm of each update:", *norm_table(found.norms)]
    if found.untrained:
        lines.append(f"{count(len(found.untrained), 'layer')} with an update of zero: {', '.join(found.untrained[:3])}")
    return [*lines, "", *(f"{name:<13} {text}" for name, text in found.accepted_by.items())]


def norm_table(norms: dict[str, float]) -> list[str]:
    """Lay norms out with a row for each decoder layer and a column for each kind of layer in it."""
    rows: dict[str, dict[str, float]] = {}
    for path, norm in norms.items():
        match = _LAYER.search(f".{path}")
        row, column = (match[1], path.rpartition(".")[2]) if match else (path, "")
        rows.setdefault(row, {})[column] = norm
    columns = sorted({column for row in rows.values() for column in row})
    width = max(10, *(len(column) + 2 for column in columns))
    lines = [f"{'layer':<8}" + "".join(f"{column:>{width}}" for column in columns)]
    # Decoder layers by their numbers, then what stands alone.
    for row, cells in sorted(rows.items(), key=lambda item: (0, int(item[0])) if item[0].isdigit() else (1, 0)):
        texts = (f"{cells[column]:.4g}" if column in cells else "" for column in columns)
        lines.append(f"{row:<8}" + "".join(f"{text:>{width}}" for text in texts))
    return lines


def _num_parameters(adapter: AdapterFile) -> int:
    own = sum(pair.num_parameters for pair in adapter.pairs.values())
    return own + sum(tensor.numel() for tensor in adapter.others.values())


def _counted(values: Any) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _counts(counts: dict[Any, int]) -> str:
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{value:g} in {count(number, 'layer')}" for value, number in counts.items())
