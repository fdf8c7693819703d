"""What the fork server imports once, so that a run need not: everything that a training run imports."""

import torch

import lorakeet.api
import lorakeet.cli.main  # noqa: F401

torch.set_num_threads(1)  # a fork would lose the others
