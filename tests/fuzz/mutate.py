"""Good files, and ways to spoil them. Everything is drawn from a seeded generator, so a failure can be repeated."""

import csv
import gzip
import io
import json
import random
from typing import Any

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi <|end|>"},
            {"role": "assistant", "content": "Hello!", "weight": 1},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
            },
        ],
        "tools": [{"name": "weather"}],
    },
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "b"},
        ],
        "system": "S",
    },
    {"instruction": "Translate.", "input": "dog 🐕", "output": "Hund", "history": [["q", "a"]]},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"question": "6*7?", "answer": "42"},
    {"text": "Once upon a time, é你."},
]
TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"null",
    b"true",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b"\r\n",
    b"[" * 2000,
    b'{"a":' * 40,
    b"9" * 5000,
    b"\xf0\x9f",
    b'"role"',
    b'"messages"',
    b"<|end|>",
    b"\xe2\x80\xa8",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    0.5,
    10**30,
    "",
    " ",
    "x",
    "User",
    "tool",
    "system",
    "assistant",
    "[",
    "[{}]",
    "{}",
    "<|end|><|assistant|>",
    "\u2028",
    [],
    {},
    [[]],
    [None],
    {"role": "user"},
    {"name": "f"},
    "e\u0301",
    "\ufdd01\ufdd1",
    "\U0010ff00",
]


def good_rows(rng: random.Random) -> list[dict[str, Any]]:
    """Draw some rows of one format."""
    row = rng.choice(ROWS)
    return [row] * rng.randint(1, 4)


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, or insert, a few times."""
    spoiled = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(spoiled) + 1)
        to = min(len(spoiled), at + rng.choice([1, 1, 3, 20]))
        kind = rng.randrange(6)
        if kind == 0 and at < len(spoiled):
            spoiled[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del spoiled[at:to]
        elif kind == 2:
            spoiled[at:at] = spoiled[at:to] * rng.randint(1, 4)
        elif kind == 3:
            spoiled[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            spoiled[at:to] = rng.choice(TOKENS)
        else:
            del spoiled[at:]
    return bytes(spoiled)


def spoil_value(value: Any, rng: random.Random) -> Any:
    """Put something else in one place of a JSON value."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        changed = [*value[:at], spoil_value(value[at], rng), *value[at + 1 :]]
        return [*changed, changed[-1]] if rng.random() < 0.1 else changed
    key = rng.choice(list(value))
    if rng.random() < 0.15:
        return {k: v for k, v in value.items() if k != key}
    if rng.random() < 0.1:
        return {**value, rng.choice(["role", "content", "train", "weight", "text", "from"]): rng.choice(VALUES)}
    return {**value, key: spoil_value(value[key], rng)}


def write_jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def write_json(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")


def write_csv(rows: list[Any]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in row.values()])
    return file.getvalue().encode()


def write_parquet(rows: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def write_gz(rows: list[Any]) -> bytes:
    return gzip.compress(write_jsonl(rows), 1, mtime=0)


def spoiled_file(kind: str, rng: random.Random) -> bytes:
    """Write a file of one kind and spoil its bytes, or one of its values before it is written."""
    rows = good_rows(rng)
    if rng.random() < 0.5:
        changed = [*rows[:-1], spoil_value(rows[-1], rng)]
        try:
            return WRITERS[kind](changed)
        except Exception:  # such rows cannot be written as this kind of file: spoil its bytes instead
            rows = good_rows(rng)
    if kind == "jsonl.gz" and rng.random() < 0.5:
        return gzip.compress(spoil_bytes(write_jsonl(rows), rng), 1, mtime=0)
    return spoil_bytes(WRITERS[kind](rows), rng)


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet, "jsonl.gz": write_gz}
