"""What computes: versions and machine, by which two runs can be told apart that should be equal to the bit.

data in: this process, a model → out: short texts by name, for checkpoints, data.json, lorakeet.json. Another one may round
in another way; none of them changes what is trained.
"""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from lorakeet import dist
from lorakeet.files.hashing import file_sha256
from lorakeet.machine.compiling import can_compile
from lorakeet.machine.hardware import cpu_info
from lorakeet.models.decoder import CausalLM
from lorakeet.ops.attention.packed import backend
from lorakeet.version import __version__

_SHOWN = 12  # characters of a hash
_PACKAGES = ("transformers", "tokenizers")
_ROOT = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """Name what computes: another one may round in another way."""
    return {
        "lorakeet": __version__,
        "code": _code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "processes": str(dist.world_size()),
    }


def kernels(model: CausalLM) -> dict[str, str]:
    """Name the code that a model is trained with in this process."""
    weight = model.lm_head.weight
    q_THE = torch.empty(1, 1, model.config.head_dim, dtype=weight.dtype, device=weight.device)
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "layers": "compiled" if can_compile() else "not compiled",
        "attention": backend(q_THE, model.config.attn_logit_softcapping),
    }


def _cpu() -> str:
    """Name the processor and the instructions that PyTorch uses of it."""
    model = ", ".join(cpu_info("model name")) or platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _code_hash() -> str:
    """Hash this package's source, which says more than its version."""
    digest = hashlib.sha256()
    for file in sorted(file for file in _ROOT.rglob("*") if file.suffix in (".py", ".cpp", ".h")):
        digest.update(f"{file.relative_to(_ROOT)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()[:_SHOWN]


def commit() -> str | None:
    """Return the commit of the git checkout that this code runs from, and whether it was changed since; None elsewhere."""
    if _git("ls-files", "--error-unmatch", "version.py") is None:  # installed into somebody else's checkout, or no checkout
        return None
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return head and (f"{head}, changed since" if changes else head)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
