"""Tokens a second of generation: one stream, several streams and several adapters, beside transformers.

data in: the demo model → out: one table; ratios hold within one run, on a machine that does nothing else.

    python -m benchmarks.generation --tokens 64 --rounds 3
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lorakeet import chat_model
from lorakeet.config import LoraConfig
from lorakeet.infer.engine import Engine, Request, generate
from lorakeet.infer.mode import evaluating
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.lora.per_row import Adapter, take_adapter
from lorakeet.models.decoder import CausalLM
from lorakeet.models.registry import resolve

PROMPT = "Explain in a few sentences what a low-rank adapter is."


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loaded = chat_model.load("demo", bf16=False)
    ids, n = loaded.tokenizer.encode_text(PROMPT), options.tokens
    adapters = [_random_adapter(loaded.model, seed) for seed in range(4)]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "one stream": (1, lambda: generate(loaded.model, [ids], stop_ids=(), max_new_tokens=n)),
        "8 streams": (8, lambda: generate(loaded.model, [ids] * 8, stop_ids=(), max_new_tokens=n)),
        "8 streams, one adapter": (8, lambda: _adapted(loaded.model, ids, n, adapters[:1] * 8)),
        "8 streams, 4 adapters": (8, lambda: _adapted(loaded.model, ids, n, adapters * 2)),
        "transformers, one stream": (1, _transformers(ids, n)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, (streams, run) in ways.items():
            start = time.perf_counter()
            run()
            if round_:  # the first one warms up
                speeds[name].append(streams * n / (time.perf_counter() - start))
    one = statistics.median(speeds["one stream"])
    print(f"{torch.get_num_threads()} threads, fp32, {len(ids)} prompt tokens, {n} generated, median of {options.rounds}")
    for name, found in speeds.items():
        print(f"{name:28} {statistics.median(found):8.1f} tokens/s  {statistics.median(found) / one:5.2f} of one stream")


def _random_adapter(model: CausalLM, seed: int) -> Adapter:
    inject(model, LoraConfig(r=16))
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.01, generator=generator)
    return take_adapter(model)


def _adapted(model: CausalLM, ids: list[int], n: int, adapters: list[Adapter]) -> None:
    engine = Engine(model)
    with evaluating(model):
        for adapter in adapters:
            engine.submit(Request(prompt=ids, stop_ids=(), max_new_tokens=n, adapter=adapter))
        while engine.advance():
            pass
    engine.adapters.close()


def _transformers(ids: list[int], n: int) -> Callable[[], object]:
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(resolve("demo"), dtype=torch.float32).eval()
    prompt = torch.tensor([ids])
    options = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n, "attention_mask": torch.ones_like(prompt)}
    return lambda: theirs.generate(prompt, **options)


if __name__ == "__main__":
    main()
