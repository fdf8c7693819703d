"""How fast answers come: the goals of generation, each a ratio within one run, in turns with the peers.

usage: python -m benchmarks.generation [--tokens 32] [--rounds 3] [--rows one four-bits ...] [--run RUN] [--full-size DIR]
       OMP_NUM_THREADS=1 python -m benchmarks.generation --busy

data in: the demo model → out: one table of goals, what was measured, and whether it holds. Peers are transformers'
`generate` in the same precision and llama.cpp (xllamacpp) over Q4_0 and Q8_0 files that our exporter writes, with as many
threads. Speeds are those after the first two tokens, medians of rounds in which everything takes its turn, so that what
else the machine does hits all alike. On a machine that others use too, `--busy` counts this process's processor time
instead, which needs one thread: several wait for each other on the clock.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from lorakeet import api, chat_model
from lorakeet.chat_model import ChatModel
from lorakeet.config import LoraConfig, QuantizationConfig
from lorakeet.exports.artefact import Source
from lorakeet.exports.gguf_model import write_model
from lorakeet.infer.engine import Engine, Request
from lorakeet.infer.mode import evaluating
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.lora.per_row import Adapter, take_adapter
from lorakeet.models import weights
from lorakeet.models.decoder import CausalLM

PROMPT = "Explain in a few sentences what a low-rank adapter is."
LONG_PROMPT = 1000
Measure = Callable[[], float]
"""Runs once; returns tokens a second, or seconds."""
now = time.perf_counter
"""The clock that all measurements read."""


@dataclass(frozen=True)
class Goal:
    """A ratio of two measurements and what it should be."""

    row: str
    title: str
    over: str
    under: str
    limit: float
    is_least: bool = True
    """Whether the ratio should be at least `limit`; otherwise at most."""


GOALS = (
    Goal("one", "one stream / transformers", "one stream", "transformers", 3),
    Goal("four-bits", "one stream in 4 bits / llama.cpp Q4_0", "4 bits", "llama.cpp Q4_0", 0.9),
    Goal("eight-bits", "one stream in 8 bits / llama.cpp Q8_0", "8 bits", "llama.cpp Q8_0", 0.9),
    Goal("full-size", "full size, 4 bits / bandwidth over bytes", "full size", "copy bandwidth", 0.7),
    Goal("streams", "8 streams / one stream", "8 streams", "one stream", 5),
    Goal("adapters", "8 streams, 4 adapters / one adapter", "8 streams, 4 adapters", "8 streams, 1 adapter", 0.85),
    Goal("first", "first token of 1,000 / forward pass", "first token", "forward pass", 1.15, is_least=False),
    Goal("cached", "the same, prefix cached / forward pass", "first token, cached", "forward pass", 0.2, is_least=False),
    Goal("evaluate", "evaluate 200 demo rows, seconds / 40", "evaluate", "40 s", 1, is_least=False),
)


def main() -> None:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [goal.row for goal in GOALS]
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=rows, default=[row for row in rows if row not in ("full-size", "evaluate")]
    )
    parser.add_argument("--run", help="run of the demo for --rows evaluate")
    parser.add_argument("--full-size", type=Path, help="model directory for --rows full-size")
    parser.add_argument("--busy", action="store_true", help="count processor time; for one thread")
    options = parser.parse_args()
    if options.busy:
        global now
        now = time.process_time
    goals = [goal for goal in GOALS if goal.row in options.rows]
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways({name for goal in goals for name in (goal.over, goal.under)}, options, Path(folder))
        found: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(options.rounds + 1):
            for name, measure in ways.items():
                value = measure()
                if round_:  # the first one warms up
                    found[name].append(value)
    print(f"{torch.get_num_threads()} threads, {options.tokens} tokens, median of {options.rounds} rounds")
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        print(f"  {name:24} {value:9.2f}   ({min(found[name]):.2f} to {max(found[name]):.2f})")
    for goal in goals:
        ratio = medians[goal.over] / medians[goal.under]
        holds = ratio >= goal.limit if goal.is_least else ratio <= goal.limit
        print(
            f"{goal.title:44} {ratio:6.2f}  goal {'≥' if goal.is_least else '≤'} {goal.limit:<5g} {'' if holds else 'missed'}"
        )


def _ways(wanted: set[str], options: argparse.Namespace, folder: Path) -> dict[str, Measure]:
    """Prepare what is wanted, and only that; speeds are in tokens a second, the rest in seconds."""
    n, plain = options.tokens, chat_model.load("demo", bf16=False)
    ids = plain.tokenizer.encode_text(PROMPT)
    long_ids = (ids * LONG_PROMPT)[:LONG_PROMPT]

    def four_bits(name: str, bits: str) -> Measure:
        quantized = _quantized(name, bits)
        return _streams(quantized, quantized.tokenizer.encode_text(PROMPT), n, [None])

    def adapted(num_adapters: int) -> Measure:
        adapters = [_random_adapter(plain.model, seed) for seed in range(num_adapters)]
        return _streams(plain, ids, n, adapters * (8 // num_adapters))

    prepare: dict[str, Callable[[], Measure]] = {
        "one stream": lambda: _streams(plain, ids, n, [None]),
        "transformers": lambda: _transformers(plain, ids, n),
        "8 streams": lambda: _streams(plain, ids, n, [None] * 8),
        "8 streams, 1 adapter": lambda: adapted(1),
        "8 streams, 4 adapters": lambda: adapted(4),
        "4 bits": lambda: four_bits("demo", "load_in_4bit"),
        "llama.cpp Q4_0": lambda: _llama_cpp(plain, "q4_0", ids, n, folder),
        "8 bits": lambda: four_bits("demo", "load_in_8bit"),
        "llama.cpp Q8_0": lambda: _llama_cpp(plain, "q8_0", ids, n, folder),
        "full size": lambda: four_bits(str(options.full_size), "load_in_4bit"),
        "copy bandwidth": lambda: _bandwidth(_quantized(str(options.full_size), "load_in_4bit").model),
        "forward pass": lambda: _forward_pass(plain.model, long_ids),
        "first token": lambda: _first_token(plain.model, long_ids, is_cached=False),
        "first token, cached": lambda: _first_token(plain.model, long_ids, is_cached=True),
        "evaluate": lambda: _evaluate(options.run),
        "40 s": lambda: lambda: 40.0,
    }
    return {name: ready() for name, ready in prepare.items() if name in wanted}


def _quantized(name: str, bits: str) -> ChatModel:
    return chat_model.load(name, bf16=False, quantization=QuantizationConfig(**{bits: True}))


def _random_adapter(model: CausalLM, seed: int) -> Adapter:
    inject(model, LoraConfig(r=16))
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.01, generator=generator)
    return take_adapter(model)


def _streams(loaded: ChatModel, ids: list[int], n: int, adapters: Sequence[Adapter | None]) -> Measure:
    """Answer one prompt under each adapter at once."""

    def measure() -> float:
        with evaluating(loaded.model), torch.compiler.set_stance("force_eager"):
            engine = Engine(loaded.model)
            for adapter in adapters:
                engine.submit(Request(prompt=ids, stop_ids=(), max_new_tokens=n, adapter=adapter))
            engine.advance()  # reads the prompts and brings the first tokens
            engine.advance()  # describes the model to the native step
            start = now()
            while engine.advance():
                pass
            seconds = now() - start
            engine.adapters.close()
        return len(adapters) * (n - 2) / seconds

    return measure


class _Clock:
    """What transformers' `generate` calls with the prompt and with every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: object) -> None:
        self.times.append(now())

    def end(self) -> None:
        pass


def _transformers(loaded: ChatModel, ids: list[int], n: int) -> Measure:
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(loaded.directory, dtype=torch.float32).eval()
    prompt = torch.tensor([ids])
    options = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n, "attention_mask": torch.ones_like(prompt)}

    def measure() -> float:
        clock = _Clock()
        theirs.generate(prompt, streamer=clock, **options)
        return (n - 1) / (clock.times[-1] - clock.times[1])

    return measure


def _llama_cpp(loaded: ChatModel, kind: str, ids: list[int], n: int, folder: Path) -> Measure:
    """Start llama.cpp's server in this process with its own defaults, but for one answer at a time and our threads."""
    import xllamacpp

    file = folder / f"demo-{kind}.gguf"
    source = Source(loaded.directory, Path(), loaded.tokenizer, loaded.template)
    write_model(source, weights.outline(loaded.directory), file, kind)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = str(file), 2048, 1, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    address = urlsplit(server.listening_address)

    def ask(num_tokens: int) -> float:
        start, body = now(), {"prompt": ids, "n_predict": num_tokens, "ignore_eos": True, "temperature": 0}
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        json.loads(connection.getresponse().read())
        return now() - start

    def measure(_: Any = server) -> float:  # which lives as long as this function
        ask(1)  # so that both others find the prompt in the cache, and their difference is the later tokens
        return (n - 1) / (ask(n) - ask(1))

    return measure


def _forward_pass(model: CausalLM, ids: list[int]) -> Measure:
    """Pass over a prompt without engine or cache, up to the last token's logits."""

    def measure() -> float:
        start = now()
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            ends, last = torch.tensor([0, len(ids)], dtype=torch.int32), torch.tensor([len(ids) - 1])
            model.logits(model(torch.tensor(ids), torch.arange(len(ids)), ends, rows_S=last))
        return now() - start

    return measure


def _first_token(model: CausalLM, ids: list[int], *, is_cached: bool) -> Measure:
    """Time the first token behind a prompt, the last tenth of which is new where the rest is cached.

    The engine has answered a prompt of this length before, as one that serves has: its cache is large enough.
    """
    num_shared = len(ids) * 9 // 10
    other = ids[:num_shared] + [id - 1 for id in ids[num_shared:]]

    def measure() -> float:
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            engine = Engine(model, prefix_bytes=1 << 30 if is_cached else 0)
            engine.submit(Request(prompt=other, stop_ids=(), max_new_tokens=1))
            engine.advance()
            start = now()
            engine.submit(Request(prompt=ids, stop_ids=(), max_new_tokens=2))
            engine.advance()
        return now() - start

    return measure


def _bandwidth(model: CausalLM) -> Measure:
    """Return how many times a second the bytes of the weights could be read, going by how fast memory is copied."""
    num_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)

    def measure() -> float:
        start = now()
        target.copy_(source)
        return 2 * source.nbytes / (now() - start) / num_bytes

    return measure


def _evaluate(run: str | None) -> Measure:
    def measure() -> float:
        start = now()
        api.evaluate(run, "demo", max_rows=200)
        return now() - start

    return measure


if __name__ == "__main__":
    main()
