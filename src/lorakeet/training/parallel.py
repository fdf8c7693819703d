"""One training step shared by several processes, on PyTorch's own engine.

data in: a model with adapters, in every process → out: a model to call in its place, whose backward pass adds up the
adapters' gradients over all processes. Every process holds all adapters and their optimizer state, and takes the same
step; the frozen base is held whole by each (DistributedDataParallel), or each keeps a part of every layer and sees
the others' when it computes that layer (FSDP2's `fully_shard`). What the processes exchange beside gradients
is in `lorakeet.dist`.
"""

import contextlib
import dataclasses
import hashlib
import socket
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch._C._distributed_c10d import GradBucket  # DistributedDataParallel wants to see it in the annotation
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lorakeet import dist
from lorakeet.errors import ConfigError
from lorakeet.models.decoder import CausalLM
from lorakeet.rundir.checkpoint import TrainerState
from lorakeet.training.rng import get_rng_states, set_rng_states


class SharedModel(DistributedDataParallel):
    """A model whose last backward pass of a step adds up gradients over all processes.

    DistributedDataParallel takes their mean. Here every process has already divided its loss by the supervised tokens
    of all, so the sum is wanted: a mean of means would weigh a token by the process it happened to be in.
    """

    def __init__(self, model: CausalLM) -> None:
        # The base is the same in all processes, which `broadcast_params` sees to for the adapters.
        super().__init__(model, init_sync=False, gradient_as_bucket_view=True)
        self.broadcast_buffers = False  # they are the base's, and the argument's name depends on torch's version
        self.register_comm_hook(None, _add_up)

    def __getattr__(self, name: str) -> Any:
        """Find what is not DistributedDataParallel's in the model itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def _add_up(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def shared(model: CausalLM) -> CausalLM:
    """Return what a training step calls: the model where it is alone, else a SharedModel, which answers for it."""
    if not dist.is_shared():
        return model
    # Layers are compiled one by one, inside; there is no graph to split where gradients are exchanged.
    torch._dynamo.config.optimize_ddp = False
    return cast(CausalLM, SharedModel(model))


def without_sync(model: nn.Module) -> contextlib.AbstractContextManager:
    """Within this block a backward pass exchanges nothing: the gradients add up in this process until one outside."""
    return model.no_sync() if isinstance(model, SharedModel) else contextlib.nullcontext()


def broadcast_params(named_params: Mapping[str, torch.Tensor]) -> None:
    """Copy the adapters that the main process drew to every other."""
    if not dist.is_shared():
        return
    with torch.no_grad():
        for name, value in dist.tensors_from_main({name: param.detach() for name, param in named_params.items()}).items():
            named_params[name].copy_(value)


def require_same(identity: Mapping[str, str]) -> None:
    """Raise ConfigError if this process is about to train on something else than the main one: data, base, settings."""
    mains = dist.from_main(dict(identity))
    if differing := [key for key, value in identity.items() if mains[key] != value]:
        raise ConfigError(
            "E-CFG-183",
            f"process {dist.rank()} has another {', '.join(differing)} than the main one",
            place=socket.gethostname(),
            fix="Give every machine the same files and the same command",
        )


def state_from_main(found: TrainerState | None) -> TrainerState | None:
    """Return in every process the state that the main one has read, so that only its machine need hold the checkpoints."""
    if not dist.is_shared() or not dist.from_main(found is not None):
        return found
    received: dict[str, Any] = {}
    for field in dataclasses.fields(TrainerState):
        mine = getattr(found, field.name) if found is not None else {}
        is_tensors = dist.from_main(any(isinstance(value, torch.Tensor) for value in mine.values()))
        received[field.name] = dist.tensors_from_main(mine) if is_tensors else dist.from_main(mine)
    return TrainerState(**received)


def shard_base(model: CausalLM) -> None:
    """Leave every process a part of each frozen weight, whole only while its layer computes; the adapters stay whole.

    The embedding, the final norm and the head come together once a step and stay until its backward pass is over.
    """
    from torch.distributed.fsdp import fully_shard

    adapters = {param for param in model.parameters() if param.requires_grad}
    if not all(param.is_floating_point() for param in model.parameters()):
        raise ConfigError(
            "E-CFG-185",
            "a quantised model is not shared out",
            place="training_config.fsdp",
            fix="Leave fsdp out: each process holds the small model whole",
        )
    mesh = init_device_mesh(model.lm_head.weight.device.type, (dist.world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
    fully_shard(model, mesh=mesh, ignored_params=adapters)


def seed_process(seed: int, step: int) -> None:
    """Let every process draw random numbers of its own from `step` on; the main one's stay as they would be alone."""
    if dist.rank() > 0:
        digest = hashlib.sha256(f"lorakeet/{seed}/{step}/{dist.rank()}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))


def gather_random_states() -> dict[str, torch.Tensor]:
    """Collect the states of all generators of the main process, and of those that the others draw from: torch's."""
    states = get_rng_states()
    for kind, mine in _own_states().items():
        states |= {f"process {i} {kind}": theirs for i, theirs in enumerate(dist.gather(mine)) if i > 0}
    return states


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Go on with the random numbers of the process of the same number; one that is new leaves its own as they are."""
    if dist.rank() == 0:
        set_rng_states(states)
        return
    mine = {kind: states[name] for kind in _own_states() if (name := f"process {dist.rank()} {kind}") in states}
    if "cpu" in mine:
        torch.set_rng_state(mine["cpu"])
    if "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"])


def _own_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
