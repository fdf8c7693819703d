"""QLoRA: what dequantising costs, and what four bits cost the demo's task, as JSON lines.

usage: python -m benchmarks.qlora dequantize
       python -m benchmarks.qlora demo RUN_DIR [--bits 4] [--init true|loftq] [--r 16] [--seed 42]

`dequantize` times our dequantisation and bitsandbytes' for the layers of Phi-3-mini, and, in the same run, copying
and writing as many bytes: what the memory allows.
`demo` is `lorakeet demo` over a base of 4 bits, or of 16 beside it, without the score before training.
What training a full-size model over four bits costs: benchmarks.full_size.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from lorakeet.demo_task import recipe
from lorakeet.machine.hardware import best_dtype

ROW = 512
LINEARS = {"qkv_proj": (9216, 3072), "o_proj": (3072, 3072), "gate_up_proj": (16384, 3072), "down_proj": (3072, 8192)}


def best_seconds(run: Callable[[], object], repeats: int = 25) -> float:
    """Time a call, warmed up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def dequantize() -> None:
    """Print nanoseconds a weight, for every kind of layer."""
    for name, shape in LINEARS.items():
        print(json.dumps({"layer": name, "shape": shape, "ns_per_weight": nanoseconds(shape)}), flush=True)


@torch.no_grad()
def nanoseconds(shape: tuple[int, int]) -> dict[str, float]:
    """Time what can be done with one weight."""
    import bitsandbytes.functional as bnb

    from lorakeet.quant import nf4
    from lorakeet.quant.layers import Linear4bit
    from lorakeet.quant.linear import _weight_4bit

    dtype = best_dtype("cpu")
    weight = (torch.randn(shape) * 0.02).to(dtype)
    layer = Linear4bit.quantize(weight)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    like, target = torch.empty(0, dtype=dtype), torch.zeros_like(weight)
    x, grad = torch.randn(ROW, shape[1]).to(dtype), torch.randn(ROW, shape[0]).to(dtype)
    timed: dict[str, Callable[[], object]] = {
        "ours": lambda: _weight_4bit(like, layer.weight, layer.scales, shape, "nf4", nf4.BLOCKSIZE),
        "bitsandbytes": lambda: bnb.dequantize_4bit(packed, state),
        "write": lambda: target.fill_(1.0),
        "copy": lambda: target.copy_(weight),
        "gemm_forward": lambda: torch.nn.functional.linear(x, weight),
        "gemm_backward": lambda: grad @ weight,
        "layer_forward": lambda: layer(x),
        "one_token": lambda: layer(x[:1]),
        "one_token_16bit": lambda: torch.nn.functional.linear(x[:1], weight),
    }
    return {key: round(best_seconds(run) / weight.numel() * 1e9, 4) for key, run in timed.items()}


def demo(options: argparse.Namespace) -> None:
    """Train the demo's task, and print its score."""
    from lorakeet import api
    from lorakeet.demo_task.outcome import score_demo

    initial = True if options.init == "true" else options.init
    run = api.train(
        "demo",
        "demo",
        training_config={**recipe.RECIPE, "output_dir": options.run_dir, "seed": options.seed},
        peft_config={"r": options.r, "lora_alpha": 2 * options.r, "init_lora_weights": initial},
        quantization_config={"load_in_4bit": options.bits == 4},
    )
    print(json.dumps({"score_after": score_demo(run.load()).score, **run.summary}))


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("dequantize")
    of_demo = commands.add_parser("demo")
    of_demo.add_argument("run_dir")
    of_demo.add_argument("--bits", type=int, default=4, choices=[4, 16])
    of_demo.add_argument("--init", default="true", choices=["true", "loftq"])
    of_demo.add_argument("--r", type=int, default=recipe.PEFT_RECIPE["r"], help="lora_alpha is twice that")
    of_demo.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    if options.command == "dequantize":
        dequantize()
    else:
        demo(options)


if __name__ == "__main__":
    main()
