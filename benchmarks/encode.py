"""Measure the data package: rows a minute through encoding and proof, and memory while a large file streams.

    python -m benchmarks.encode [--data gsm8k_train.jsonl] [--model DIR ...] [--stream-gb 2]

Prints Markdown. The figures in benchmarks/results name the machine, the commit and the command.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

from lorakeet.data.encode_all import encode_rows, encode_stream
from lorakeet.data.read import read_conversations
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer


def measure_speed(data: Path, model: Path, repeats: int) -> str:
    """Time reading, encoding and proving of all rows; the best of some repeats."""
    tokenizer = load_tokenizer(model)
    template = template_for(tokenizer)
    best, tokens, count = float("inf"), 0, 0
    for _ in range(repeats):
        start = time.perf_counter()
        rows = list(read_conversations(data))
        encoded = encode_rows(rows, tokenizer, template)
        best = min(best, time.perf_counter() - start)
        tokens, count = encoded.num_tokens, len(rows)
    return f"| {model.name} | {template.name} | {count:,} | {tokens:,} | {best:.2f} | {count / best * 60:,.0f} |"


def measure_stream(model: Path, gigabytes: float) -> str:
    """Read, encode and prove a generated file; tell how far the process's memory rose after its first rows."""
    tokenizer = load_tokenizer(model)
    template = template_for(tokenizer)
    answer = "It is forty-two, as everyone knows. " * 60
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        with open(path, "w") as file:
            number = 0
            while file.tell() < gigabytes * 1e9:
                number += 1
                file.write(json.dumps({"prompt": f"Question {number}?", "completion": answer}) + "\n")
        size = path.stat().st_size
        start, after_warmup, count = time.perf_counter(), 0, 0
        for _ in encode_stream(read_conversations(path), tokenizer, template):
            count += 1
            if count == 10_000:
                after_warmup = _peak_bytes()
        seconds = time.perf_counter() - start
    rise = (_peak_bytes() - after_warmup) / 1e6
    return (
        f"{size / 1e9:.2f} GB in {count:,} rows: {seconds:.0f} s ({size / 1e6 / seconds:.0f} MB/s); peak memory "
        f"{_peak_bytes() / 1e6:.0f} MB, risen by {rise:.0f} MB after the first 10,000 rows"
    )


def _peak_bytes() -> int:
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--model", default=["demo"], nargs="+", help="alias or directory with tokenizer files")
    parser.add_argument("--stream-gb", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    from lorakeet.models.registry import resolve

    models = [resolve(name) for name in options.model]
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    if options.stream_gb:
        print(measure_stream(models[0], options.stream_gb) + "\n")
    print("| model | template | rows | tokens | seconds | rows a minute |\n|---|---|---|---|---|---|")
    for model in models:
        print(measure_speed(options.data, model, options.repeats))


if __name__ == "__main__":
    main()
