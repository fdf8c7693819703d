"""What an optimizer keeps between steps, as named tensors and plain values, and back, exactly.

data in: any torch optimizer → out: tensors that safetensors takes and values that JSON takes, under the parameters'
names; nothing is known here about any one optimizer. Files are written and read elsewhere (checkpoint.py).
Whatever is missing, left over or of another shape on the way back is an error: nothing begins again silently.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lorakeet.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Named = Mapping[str, torch.nn.Parameter]


def take_optimizer(optimizer: torch.optim.Optimizer, named_params: Named) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimizer's tensors, under `parameter/key`, and its other values, as references to what is live."""
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    saved, seen = optimizer.state_dict(), set()
    for index, name in enumerate(_names(optimizer, named_params)):
        for path, value in _leaves(saved["state"].get(index, {})):
            if not isinstance(value, torch.Tensor):
                values[f"{name}/{path}"] = value
                continue
            # bitsandbytes hands one table to all parameters; in a file each has its own.
            tensors[f"{name}/{path}"] = value.clone() if value.data_ptr() in seen else value
            seen.add(value.data_ptr())
    groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    return tensors, {"groups": groups, "values": values, "num_tensors": len(tensors)}


def give_optimizer(optimizer: torch.optim.Optimizer, named_params: Named, tensors: Tensors, plain: Mapping[str, Any]) -> None:
    """Put what `take_optimizer` returned into an optimizer of the same kind over the same parameters."""
    index_of = {name: index for index, name in enumerate(_names(optimizer, named_params))}
    if len(tensors) != plain["num_tensors"]:
        raise _incomplete(f"has {len(tensors)} of {plain['num_tensors']} tensors")
    leaves = {**tensors, **plain["values"]}
    state: dict[int, dict[str, Any]] = {}
    for key, value in leaves.items():
        name, _, path = key.partition("/")
        if name not in index_of:
            raise _incomplete(f"has {key}, which belongs to no parameter that trains")
        _put(state.setdefault(index_of[name], {}), path, value)
    if leaves and (without := [name for name, index in index_of.items() if index not in state]):
        raise _incomplete(f"has nothing for {len(without)} parameters, for example {without[0]}")
    live = optimizer.state_dict()["param_groups"]
    if [group.keys() - {"params"} for group in live] != [group.keys() for group in plain["groups"]]:
        raise _incomplete("has other parameter groups")
    groups = [
        {key: _like(value, saved.get(key, value)) for key, value in group.items()}
        for group, saved in zip(live, plain["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def give_params(named_params: Named, tensors: Tensors) -> None:
    """Copy saved values into parameters: exactly these names, exactly these shapes."""
    if differing := sorted(named_params.keys() ^ tensors.keys()):
        raise CheckpointError(
            "E-CKPT-66",
            f"its parameters differ from those that train in {len(differing)}: {', '.join(differing[:5])}",
            place="params.safetensors",
            fix="Resume with the configuration the run began with",
        )
    for name, param in named_params.items():
        if param.shape != tensors[name].shape:
            raise CheckpointError(
                "E-CKPT-65",
                f"{name} has shape {list(tensors[name].shape)}, expected {list(param.shape)}",
                place="params.safetensors",
                fix="Resume with the configuration the run began with",
            )
    with torch.no_grad():
        for name, param in named_params.items():
            param.copy_(tensors[name])


def _names(optimizer: torch.optim.Optimizer, named_params: Named) -> list[str]:
    """Name the optimizer's parameters in its own order, which is that of the indices in its state."""
    name_of = {param: name for name, param in named_params.items()}
    return [name_of[param] for group in optimizer.param_groups for param in group["params"]]


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a state whose values may be dictionaries themselves, as those of bitsandbytes are."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Undo `_leaves` for one value."""
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _like(live: Any, saved: Any) -> Any:
    """Return a value from JSON in its type: JSON knows no tuples."""
    return tuple(saved) if isinstance(live, tuple) else saved


def _incomplete(found: str) -> CheckpointError:
    return CheckpointError(
        "E-CKPT-60",
        f"the optimizer's state {found}: cannot resume exactly",
        place="moments.safetensors",
        fix="Resume from another checkpoint, or begin again with --restart",
    )
