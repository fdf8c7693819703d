"""QLoRA: what dequantising costs, and training over a 4-bit base beside PEFT + bitsandbytes, as JSON lines.

usage: python -m benchmarks.qlora dequantize
       python -m benchmarks.qlora demo RUN_DIR [true|loftq]
       python -m benchmarks.qlora {lorakeet,peft} MODEL_DIR TOKENS STEPS

`dequantize` times our dequantisation and bitsandbytes' for the layers of Phi-3-mini, and, in the same run, copying
and writing as many bytes: what the memory allows. `lorakeet` and `peft` train r=16 adapters on all linear layers, on
rows of 512 random token ids, TOKENS of them a step; the first step compiles and is reported apart. Both compute in the
type that is fastest here (bf16 or fp32, `best_dtype`). PEFT's adapters are of that type too, its layers are not
compiled; lorakeet recomputes selectively. The caller keeps glibc from returning pages
(MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296). For lorakeet, the seconds of loading are those of a first start
or of one from the cache.
`demo` is `lorakeet demo` over a 4-bit base, without the score before training; the adapters begin as usual, or with
LoftQ.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lorakeet.ops.hardware import best_dtype

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


def nanoseconds(shape: tuple[int, int]) -> dict[str, float]:
    """Time what can be done with one weight."""
    import bitsandbytes.functional as bnb

    from lorakeet.ops import nf4
    from lorakeet.ops.quantized_linear import _weight_4bit
    from lorakeet.quant.layers import Linear4bit

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
    }
    return {key: round(best_seconds(run) / weight.numel() * 1e9, 4) for key, run in timed.items()}


def lorakeet(directory: Path, rows: torch.Tensor, per_step: int) -> tuple[float, list[float], list[float]]:
    """Run the project's own step over a 4-bit base."""
    from lorakeet.config import LoraConfig, QuantizationConfig, TrainingConfig
    from lorakeet.data.conversation import Example
    from lorakeet.lora.inject import inject
    from lorakeet.loss import pack_for
    from lorakeet.models.quantized import load_quantized_model
    from lorakeet.models.recompute import recompute_activations
    from lorakeet.ops.memory import keep_few_products, keep_freed_memory
    from lorakeet.training.optim import build_optimizer
    from lorakeet.training.trainer import train_step

    keep_few_products()
    start = time.perf_counter()
    model = load_quantized_model(directory, QuantizationConfig(load_in_4bit=True), dtype=best_dtype("cpu"))
    loading = time.perf_counter() - start
    print(json.dumps({"loaded_s": round(loading, 1), "peak_memory_bytes": peak_memory()}), flush=True)
    torch.manual_seed(0)
    inject(model, LoraConfig(r=16, lora_alpha=32))
    keep_freed_memory()
    recompute_activations(model, "selective")
    model.compile_layers()
    model.train()
    config = TrainingConfig(learning_rate=2e-4)
    optimizer = build_optimizer(model, config)
    seconds, losses = [], []
    for part in rows.split(per_step):
        examples = [Example(row.tolist(), ((ROW // 8, ROW),), f"row {i}") for i, row in enumerate(part)]
        start = time.perf_counter()
        outcome = train_step(model, [pack_for(model, examples)], optimizer, 1.0)
        seconds.append(time.perf_counter() - start)
        losses.append(outcome.loss)
        print(json.dumps({"step_s": round(seconds[-1], 2), "peak_memory_bytes": peak_memory()}), flush=True)
    return loading, seconds, losses


def peft(directory: Path, rows: torch.Tensor, per_step: int) -> tuple[float, list[float], list[float]]:
    """Run PEFT's QLoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(0)
    start = time.perf_counter()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=best_dtype("cpu"),
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        directory, dtype=best_dtype("cpu"), quantization_config=quantization, device_map="cpu"
    )
    loading = time.perf_counter() - start
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    config = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0)
    seconds, losses = [], []
    for part in rows.split(per_step):
        labels = part.clone()
        labels[:, : ROW // 8] = -100
        start = time.perf_counter()
        loss = model(input_ids=part, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        print(json.dumps({"step_s": round(seconds[-1], 2), "peak_memory_bytes": peak_memory()}), flush=True)
    return loading, seconds, losses


def demo(directory: str, initial: str = "true") -> None:
    """Train the demo's task over a 4-bit base, and print its score."""
    from lorakeet import api
    from lorakeet.embedded import toolcalls
    from lorakeet.embedded.scoring import score
    from lorakeet.evaluation.generation import generate_answers, mean_scores

    run = api.train(
        "demo", "demo", training_config={**toolcalls.RECIPE, "output_dir": directory},
        peft_config={**toolcalls.PEFT_RECIPE, "init_lora_weights": initial == "true" or initial},
        quantization_config={"load_in_4bit": True},
    )  # fmt: skip
    loaded = run.load()
    answers = generate_answers(
        loaded.model, loaded.tokenizer, loaded.template, toolcalls.held_out_conversations(),
        max_new_tokens=toolcalls.MAX_NEW_TOKENS,
        metrics={api.DEMO_METRIC: lambda reference, text: float(score(reference, text))},
    )  # fmt: skip
    print(json.dumps({"score_after": mean_scores(answers)[api.DEMO_METRIC], **run.summary}))


def peak_memory() -> int:
    """Give the process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure and print."""
    if sys.argv[1] == "dequantize":
        dequantize()
    elif sys.argv[1] == "demo":
        demo(*sys.argv[2:])
    else:
        train(*sys.argv[1:])


def train(name: str, directory: str, tokens: str, steps: str) -> None:
    """Train one system and print what it took."""
    per_step = int(tokens) // ROW
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 32000, (per_step * int(steps), ROW), generator=generator)
    loading, seconds, losses = {"lorakeet": lorakeet, "peft": peft}[name](Path(directory), rows, per_step)
    timed = seconds[1:]
    print(json.dumps({
        "system": name,
        "tokens_a_step": per_step * ROW,
        "tokens_per_second": round(per_step * ROW * len(timed) / sum(timed), 2),
        "first_step_s": round(seconds[0], 1),
        "loading_s": round(loading, 1),
        "peak_memory_bytes": peak_memory(),
        "losses": losses,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
