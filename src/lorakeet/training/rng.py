"""The states of all random generators that a run could draw from, as tensors.

data in: torch's (CPU and every GPU), Python's and NumPy's generators → out: named tensors, and back.
"""

import random
from typing import Any

import numpy
import torch


def seed_all(seed: int) -> None:
    """Seed all generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def get_rng_states() -> dict[str, torch.Tensor]:
    """Copy the states of all generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    _, words, gauss = random.getstate()
    states["python"] = torch.tensor(words)
    states["python gauss"] = torch.tensor([] if gauss is None else [gauss], dtype=torch.float64)
    state: dict[str, Any] = numpy.random.get_state(legacy=False)
    states["numpy"] = torch.tensor([*state["state"]["key"].tolist(), state["state"]["pos"], state["has_gauss"]])
    states["numpy gauss"] = torch.tensor(state["gauss"], dtype=torch.float64)
    return states


def set_rng_states(states: dict[str, torch.Tensor]) -> None:
    """Put all generators into the states they were in; those of GPUs that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{i}"], i)
    gauss = states["python gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    key = numpy.array(keys, dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", key, position, has_gauss, states["numpy gauss"].item()))
