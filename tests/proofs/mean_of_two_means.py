"""Row 2 of the silent bugs, put back in: every process divides by its own tokens, and the means are averaged."""

import sys

import torch

from lorakeet import dist
from lorakeet.proofs.ranks import main
from lorakeet.training import parallel

true_totals = dist.totals


def own_totals(*values):
    """Count this process's tokens alone; a step asks for two totals, whatever else is exchanged for one."""
    return [float(value) for value in values] if len(values) == 2 else true_totals(*values)


def mean(_, bucket):
    """Average over processes, as DistributedDataParallel does."""
    work = torch.distributed.all_reduce(bucket.buffer().div_(dist.world_size()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


if __name__ == "__main__":
    dist.totals, parallel._add_up = own_totals, mean
    main(sys.argv[1:])
