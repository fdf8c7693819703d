"""The rows that every measured system trains on: token ids and learned spans, the same for all.

W1 GSM8K problems; W2 short questions that share a system prompt of about 200 tokens; W3 conversations of several
turns; W4 equal lengths of 512 tokens, nothing to skip; W5 documents of 4,096 tokens. Q05, L1 and G270 are W1 for models
of other families' real shapes, vocabulary included, with random weights; the token ids are those of W1.
The problems come from the GSM8K file where there is one (`LORAKEET_TEST_DATA`, else ../shared/data), and from the
demo's own rows where there is none; the tables say which.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.make_full_size import make
from lorakeet.data.conversation import Conversation, Example, Message
from lorakeet.data.encode import encode_many
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.models.config_file import config_from_json

SYSTEM_PROMPT = (
    "You are a patient tutor of arithmetic for children between eight and twelve years. Read the problem twice before "
    "you answer. Write down each step of the calculation on a line of its own, in short and simple sentences, and name "
    "what every number stands for. Put each calculation between double angle brackets, first the expression, then an "
    "equals sign, then the result, so that a calculator can check it. Never skip a step, never guess, and never use "
    "algebra where plain counting is enough. Money is in dollars and cents, lengths are in metric units unless the "
    "problem says otherwise, and days have twenty-four hours. If the problem leaves something open, take the most "
    "ordinary reading and say so in one sentence. Do not add remarks about the problem, do not greet, and do not offer "
    "further help. End with a last line that begins with four number signs and a space, followed by the bare result as "
    "a number without its unit, without a full stop, and without any thousands separator. The last line is read by a "
    "program, so its form matters more than anything else you write."
)


def gsm8k_file() -> Path | None:
    """Find the GSM8K rows, if they are there."""
    folders = [os.environ.get("LORAKEET_TEST_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    found = [Path(folder) / "gsm8k_train.jsonl" for folder in folders if folder]
    return next((file for file in found if file.is_file()), None)


def problems(count: int) -> list[tuple[str, str]]:
    """Return (question, answer) pairs."""
    file = gsm8k_file()
    if file is None:
        from lorakeet.data.prepare import demo_rows

        rows = demo_rows("train")[:count]
        return [(row.messages[-2].content, row.messages[-1].content) for row in rows]
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [(row["question"], row["answer"]) for row in rows]


def gsm8k(count: int) -> list[Conversation]:
    """W1: one question, one answer."""
    return [Conversation((Message("user", q), Message("assistant", a))) for q, a in problems(count)]


def shared_prompt(count: int) -> list[Conversation]:
    """W2: the same behind one system prompt."""
    head = Message("system", SYSTEM_PROMPT)
    return [Conversation((head, *row.messages)) for row in gsm8k(count)]


def multi_turn(count: int) -> list[Conversation]:
    """W3: two to four problems in one conversation."""
    pairs, rng, rows = iter(problems(4 * count)), random.Random(0), []
    for _ in range(count):
        turns = [next(pairs) for _ in range(rng.randint(2, 4))]
        rows.append(Conversation(tuple(m for q, a in turns for m in (Message("user", q), Message("assistant", a)))))
    return rows


def equal_lengths(length: int) -> Callable[[int, Tokenizer], list[Example]]:
    """W4, W5: rows of exactly `length` tokens, cut out of the problems' stream, learned but for their first eighth."""

    def make(count: int, tokenizer: Tokenizer) -> list[Example]:
        template = template_for(tokenizer)
        stream = [i for row in encode_many(gsm8k(7000), tokenizer, template) for i in row.input_ids]
        stream *= -(-count * length // len(stream))
        return [
            Example(stream[at : at + length], ((length // 8, length),), f"row {at}") for at in range(0, count * length, length)
        ]

    return make


def _encoded(make: Callable[[int], list[Conversation]]) -> Callable[[int, Tokenizer], list[Example]]:
    return lambda count, tokenizer: encode_many(make(count), tokenizer, template_for(tokenizer))


WORKLOADS: dict[str, Callable[[int, Tokenizer], list[Example]]] = {
    "W1": _encoded(gsm8k),
    "W2": _encoded(shared_prompt),
    "W3": _encoded(multi_turn),
    "W4": equal_lengths(512),
    "W5": equal_lengths(4096),
    "Q05": _encoded(gsm8k),
    "L1": _encoded(gsm8k),
    "G270": _encoded(gsm8k),
}
TITLES = {
    "W1": "one question, one answer",
    "W2": "shared system prompt",
    "W3": "two to four turns",
    "W4": "rows of 512 tokens",
    "W5": "rows of 4,096 tokens",
    "Q05": "shape of Qwen2.5-0.5B",
    "L1": "shape of Llama-3.2-1B",
    "G270": "shape of Gemma-3-270m",
}
"""What each workload is, in a few words."""
BATCH = {"W1": 8, "W2": 8, "W3": 8, "W4": 8, "W5": 1, "Q05": 8, "L1": 8, "G270": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "Q05": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "L1": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "G270": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
    },
}
"""What the config.json of the models says whose shapes are measured; what is left out is their family's default."""
WARM_UP = 2
"""Steps before the clock counts: they compile."""
POOL_STEPS = 32
"""Steps' worth of rows that are sorted by length before some are taken."""


def model_directory(name: str, model: Path, folder: Path) -> Path:
    """Return the model that a workload is measured on: `model`, or one of the workload's own shape, made in `folder` once."""
    made = folder / f"{name}-model"
    if name not in SHAPES:
        return model
    if not made.exists():
        make(made, config_from_json(SHAPES[name], name), model)
    return made


def write_rows(name: str, num_steps: int, model: Path, target: Path) -> None:
    """Write the rows of the warm-up steps and of `num_steps` timed ones for the measured processes to read.

    The timed rows are whole steps of a long sorted run, spread evenly over its lengths, then shuffled: a system that
    sorts them finds next to no padding, as it would on a whole data set, and one that does not finds a usual mix.
    """
    batch = BATCH[name]
    pool_steps = num_steps if name in ("W4", "W5") else max(POOL_STEPS, num_steps)
    rows = WORKLOADS[name]((WARM_UP + pool_steps) * batch, load_tokenizer(model))
    warm, pool = rows[: WARM_UP * batch], sorted(rows[WARM_UP * batch :], key=lambda row: len(row.input_ids))
    chosen = [round((i + 0.5) * pool_steps / num_steps - 0.5) for i in range(num_steps)]
    timed = [row for step in chosen for row in pool[step * batch : (step + 1) * batch]]
    random.Random(0).shuffle(timed)
    target.write_text(json.dumps([[row.input_ids, row.spans] for row in warm + timed]))


def read_rows(file: Path) -> list[Example]:
    """Read what `write_rows` wrote."""
    return [
        Example(ids, tuple((start, end) for start, end in spans), f"row {i}")
        for i, (ids, spans) in enumerate(json.loads(file.read_text()))
    ]
