"""Measure the data package: rows a minute through encoding and proof.

    python -m benchmarks.encode [--data gsm8k_train.jsonl] [--model DIR ...]

Prints Markdown. The figures in benchmarks/results name the machine, the commit and the command.
"""

import argparse
import os
import platform
import time
from pathlib import Path

from lorakeet.data.encode_all import encode_rows
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


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--model", default=["demo"], nargs="+", help="alias or directory with tokenizer files")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    from lorakeet.models.registry import resolve

    models = [resolve(name) for name in options.model]
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    print("| model | template | rows | tokens | seconds | rows a minute |\n|---|---|---|---|---|---|")
    for model in models:
        print(measure_speed(options.data, model, options.repeats))


if __name__ == "__main__":
    main()
