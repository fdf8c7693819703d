"""Which of how many processes this is, and the little they exchange.

torchrun starts the processes, on one machine or on several, and gives each its number; `processes` joins them.
data in: a number, a short value or tensors of one process → out: those of all. With a single process, and without
torch, every function here does the obvious. Nothing is pickled: values travel as JSON. Knows nothing of models.

Gradients travel by NCCL between GPUs; all that is here travels by gloo between CPUs, which notices at once when a
process has ended.
"""

import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from lorakeet.errors import ConfigError, LorakeetError, TrainingError

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one that is alive but silent."""

_FAILURES, _STATUS = "lorakeet/failures", "lorakeet/status"
_turns = itertools.count()
_store: "Store | None" = None  # what the joined processes share


def is_shared() -> bool:
    """Tell whether this process has joined others."""
    return _store is not None


def rank() -> int:
    """Return this process's number among those that have joined, from 0."""
    return _from_torchrun("RANK", 0) if is_shared() else 0


def world_size() -> int:
    """Count the processes that have joined."""
    return _from_torchrun("WORLD_SIZE", 1) if is_shared() else 1


def local_rank() -> int:
    """Return this process's number among those that torchrun started on this machine, from 0."""
    return _from_torchrun("LOCAL_RANK", 0)


def is_main() -> bool:
    """Tell whether this is the process that writes files and speaks to the user; known before joining, too."""
    return _from_torchrun("RANK", 0) == 0


def _from_torchrun(name: str, alone: int) -> int:
    is_started = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(os.environ.get(name, str(alone))) if is_started else alone


def device() -> str:
    """Name the device of this process: a GPU of its own if there are GPUs."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{local_rank()}" if _from_torchrun("WORLD_SIZE", 1) > 1 else "cuda"


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started while the block runs; do nothing where it started one, or inside itself.

    Where the block fails in one process, it ends in all: the first one to fail raises its error, the others leave by
    SystemExit with the first one's exit status and without a word.
    """
    if is_shared() or _from_torchrun("WORLD_SIZE", 1) == 1:
        yield
        return
    global _store
    _store = store = _join()
    import torch.distributed

    try:
        yield
    except BaseException as error:
        status = _first_failure(store, _exit_status(error))
        if status is not None:
            raise SystemExit(status) from None
        if isinstance(error, RuntimeError) and not isinstance(error, LorakeetError) and _is_lost_contact(error):
            raise TrainingError(
                "E-TRAIN-130",
                f"process {rank()} lost contact with another one",
                fix="See why that one ended, then go on with --resume",
            ) from error
        raise
    finally:
        _store = None
        logging.disable(logging.NOTSET)
        torch.distributed.destroy_process_group()


def _join() -> "Store":
    """Join the group that torchrun's environment variables describe."""
    import torch
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    if torch.distributed.is_initialized():
        raise ConfigError(
            "E-CFG-182",
            "torch.distributed is initialised already",
            place="train",
            fix="Leave that to lorakeet: start the script with torchrun and call train first",
        )
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        ours, there = local_rank(), torch.cuda.device_count()
        if ours >= there:
            raise ConfigError(
                "E-CFG-181",
                f"process {ours} of this machine needs a GPU of its own, and there are {there}",
                place="torchrun --nproc-per-node",
                fix=f"Start at most {there} processes on it",
            )
        torch.cuda.set_device(ours)
    store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if has_cuda else "gloo", store=store, rank=number, world_size=count, timeout=TIMEOUT
    )
    if number > 0:
        logging.disable(logging.WARNING)  # what all have to say, the main one says
    return store


def _exit_status(error: BaseException) -> int:
    """Return the status a process ends with after `error`; the command line's own errors carry theirs."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, LorakeetError) else int(getattr(error, "exit_code", 1))


def _first_failure(store: "Store", status: int) -> int | None:
    """Note that this process fails; return the exit status of the one that failed first, None if it is this one."""
    try:
        if store.add(_FAILURES, 1) == 1:
            store.set(_STATUS, str(status))
            return None
        return int(store.get(_STATUS))
    except RuntimeError:  # whoever kept the store is gone, and with it whoever else knew
        return None


def _is_lost_contact(error: RuntimeError) -> bool:
    import torch.distributed

    text = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "Connection closed by peer" in text


# --- What they exchange -----------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait until every process is here."""
    totals(0)


def totals(*values: float) -> list[float]:
    """Add up each value over all processes; whole numbers stay exact up to 2**53."""
    if not is_shared():
        return [float(value) for value in values]
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def any_process(flag: bool) -> bool:
    """Tell all processes whether the flag is set in any of them."""
    return totals(flag)[0] > 0


def from_main(value: Value) -> Value:
    """Return in every process the main one's value, which JSON must be able to hold."""
    if not is_shared():
        return value
    import torch

    text = json.dumps(value).encode() if is_main() else b""
    length = int(totals(len(text))[0])
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8) if is_main() else torch.empty(length, dtype=torch.uint8)
    return json.loads(bytes(_broadcast(data).tolist()))


def tensors_from_main(tensors: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return in every process the main one's tensors, on the CPU; what the others hand in is not looked at."""
    if not is_shared():
        return tensors
    import torch

    kinds = from_main({name: (str(value.dtype), list(value.shape)) for name, value in tensors.items()})
    received = {}
    for name, (dtype, shape) in kinds.items():
        mine = tensors[name].cpu().contiguous() if is_main() else torch.empty(shape, dtype=getattr(torch, dtype.split(".")[1]))
        received[name] = _broadcast(mine)
    return received


def gather(tensor: "torch.Tensor") -> list["torch.Tensor"]:
    """Return in every process the tensors of all, which have one shape, on the CPU and in the order of ranks."""
    if not is_shared():
        return [tensor.cpu()]
    import torch

    mine = tensor.cpu().contiguous()
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    torch.distributed.all_gather(everyone, mine)
    return everyone


def gather_values(value: Value) -> list[Value]:
    """Return in every process the values of all, which JSON must be able to hold, in the order of ranks."""
    if not is_shared():
        return [value]
    import torch

    text = json.dumps(value).encode()
    lengths = [int(length) for length in gather(torch.tensor(len(text)))]
    padded = torch.frombuffer(bytearray(text.ljust(max(lengths))), dtype=torch.uint8)
    return [json.loads(bytes(part.tolist())) for part in gather(padded)]


@contextmanager
def one_of_each_machine_first() -> Iterator[None]:
    """Let one process of every machine through the block first, to fill a cache that the others then find full.

    The wait has no limit, since the block may take long, and ends when any process fails.
    """
    if _store is None:
        yield
        return
    key = f"lorakeet/turn/{next(_turns)}/{os.environ.get('GROUP_RANK', '0')}"
    if local_rank() == 0:
        yield
        _store.set(key, "done")
        return
    while not _store.check([key]):
        if _store.check([_FAILURES]):
            raise SystemExit(1)
        time.sleep(0.05)
    yield


def _broadcast(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    torch.distributed.broadcast(tensor, src=0)
    return tensor
