"""What exporting a model of full size costs, beside copying its files: time, processor time and memory.

usage: python -m benchmarks.export_full_size MODEL_DIR [--format hf] [--dtype bfloat16] [--prove]

in: a directory of `make_full_size` → out: a line for copying its shards and one for writing the export of an adapter with
random numbers (r=16 on all linear layers), each in a process of its own and forced to disk. With --prove the whole
command with its gate comes after it. Needs twice the model's size on disk.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from lorakeet import api
from lorakeet.config import LoraConfig, dump_yaml, resolve_config
from lorakeet.exports.artefact import Options
from lorakeet.exports.formats import find_format
from lorakeet.lora.adapter import save_adapter
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.machine.memory import keep_freed_memory
from lorakeet.models import weights


def make_run(model_directory: Path, run: Path) -> None:
    """Write a run directory with an adapter that moves every linear layer."""
    model = weights.outline(model_directory)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    inject(model, config)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=1e-3)
    extra = {"base_hash": weights.fingerprint(model_directory)}
    save_adapter(model, run / "adapter", config=config, base_model_name_or_path=str(model_directory), extra=extra)
    settings = resolve_config(model=str(model_directory), sections={"data": {"train": ["demo"]}})
    (run / "config.yaml").write_text(dump_yaml(settings), encoding="utf-8")


def measured(*command: str) -> str:
    """Run a command in a process of its own and return what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return f"{seconds:.1f} s, {processor:.1f} processor s"


def write(run: Path, form: str, dtype: str, output: Path) -> None:
    """Write without proving; print the time of that alone and the most memory that this process has had."""
    source = api.open_run(run).source()
    assert source.base_hash  # read and remembered before
    output.mkdir()
    keep_freed_memory()  # as `export` does
    start = time.perf_counter()
    find_format(form).write(source, output, Options(dtype))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_GB": round(peak, 2)}), flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--format", default="hf")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--write", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write[0], arguments.format, arguments.dtype, arguments.write[1])
        return
    run, output = arguments.directory.with_name("run-of-full-size"), arguments.directory.with_name("exported")
    if not run.exists():
        make_run(arguments.directory, run)
    copy = f"mkdir {output} && cp {arguments.directory}/*.safetensors {output} && sync {output}/*"
    print("copying the shards:", measured("sh", "-c", copy), flush=True)
    shutil.rmtree(output)
    how = ["--format", arguments.format, "--dtype", arguments.dtype]
    same = [
        sys.executable,
        "-m",
        "benchmarks.export_full_size",
        str(arguments.directory),
        *how,
        "--write",
        str(run),
        str(output),
    ]
    print(f"writing {arguments.format} in {arguments.dtype}:", measured(*same), flush=True)
    shutil.rmtree(output)
    if arguments.prove:
        whole = [sys.executable, "-m", "lorakeet", "export", str(run), *how, "-o", str(output)]
        print("the whole command with its gate:", measured(*whole))
        print(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9:.2f} GB")
        shutil.rmtree(output)


if __name__ == "__main__":
    main()
