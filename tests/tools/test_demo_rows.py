"""The demo's rows: as generated, the same everywhere, well formed, held out in words as well as in values."""

import datetime
import difflib
import gzip
import hashlib
import json
import os
import re
import string
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from lorakeet.data.conversation import Conversation
from lorakeet.data.prepare import DEMO, demo_rows
from lorakeet.demo_task.recipe import SYSTEM
from tools.demo_rows.generate import DIRECTORY, PHRASINGS, TOOLS, Request, jsonl, requests, ways_to_say, write
from tools.demo_rows.values import ARTISTS, VALUES, is_held_out

SHA256 = {
    "train": "646eb95b20ac37cda215df1cf7b2eb47fe29040ae143db052c930247e7aec81c",
    "held_out": "482e7cafc3166abe4c2ca2a2ed305dff29739ce2b89d547f1865c3f349ab7279",
}


def digest(conversations: list[Conversation]) -> str:
    text = "\n".join(json.dumps([[m.role, m.content] for m in row.messages]) for row in conversations)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def train() -> list[Request]:
    return requests("train")


@pytest.fixture(scope="module")
def held_out() -> list[Request]:
    return requests("held_out")


def argument_values(rows: list[Request]) -> set[str]:
    """Every argument of every call, as a string."""
    return {json.dumps(value).strip('"') for row in rows for value in row.call.get("arguments", {}).values()}


def bare(text: str) -> str:
    """Lower case, without punctuation and with all slots alike, so that trivial changes do not hide a copy."""
    return " ".join(re.findall(r"[a-z']+|\{\}", re.sub(r"\{\w+\}", "{}", text.lower())))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_package_holds_the_rows_that_are_generated(split: str, tmp_path: Path) -> None:
    """Byte for byte once unpacked; how well gzip packs is up to the machine's zlib."""
    shipped, written = DEMO / f"{split}.jsonl.gz", write(split, tmp_path)
    assert gzip.decompress(shipped.read_bytes()) == gzip.decompress(written.read_bytes()) == jsonl(split).encode()
    assert shipped.read_bytes()[:8] == written.read_bytes()[:8]  # no name, no time
    assert DIRECTORY == DEMO


def test_the_package_reads_the_rows_in_their_order() -> None:
    assert {split: digest(demo_rows(split)) for split in SHA256} == SHA256
    assert [row.place for row in demo_rows("held_out")[:2]] == ["demo:held_out:1", "demo:held_out:2"]


def test_the_rows_are_small() -> None:
    assert sum((DEMO / f"{split}.jsonl.gz").stat().st_size for split in SHA256) < 90_000


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_rows_do_not_depend_on_the_process(hash_seed: str) -> None:
    script = (
        f"import random; random.seed({hash_seed}); from tools.demo_rows.generate import jsonl; print(jsonl('held_out'), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, check=True).stdout
    assert printed.replace(b"\r", b"") == gzip.decompress((DEMO / "held_out.jsonl.gz").read_bytes())


def test_there_are_enough_rows_and_none_twice() -> None:
    train, held_out = demo_rows("train"), demo_rows("held_out")
    assert len(train) >= 1200
    assert len(held_out) >= 200
    said = [row.messages[1].content for row in train + held_out]
    assert len(set(said)) == len(said)


def test_every_row_is_one_question_and_one_strict_answer() -> None:
    for row, request in zip(demo_rows("held_out"), requests("held_out"), strict=True):
        assert [message.role for message in row.messages] == ["system", "user", "assistant"]
        assert row.messages[0].content == SYSTEM
        assert row.messages[1].content == request.text
        assert json.loads(row.messages[2].content) == request.call
    places = [row.place for row in demo_rows("train") + demo_rows("held_out")]
    assert len(set(places)) == len(places)


def test_every_call_fits_its_tool(train: list[Request], held_out: list[Request]) -> None:
    for row in train + held_out:
        if row.call["tool"] is None:
            assert row.call == {"tool": None}
            continue
        assert list(row.call) == ["tool", "arguments"]
        names = [name for name in TOOLS[row.call["tool"]] if name.rstrip("?") in row.call["arguments"]]
        assert list(row.call["arguments"]) == [name.rstrip("?") for name in names]
        assert {name for name in TOOLS[row.call["tool"]] if not name.endswith("?")} <= set(names)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_tool_template_and_optional_argument_occurs(split: str) -> None:
    rows = requests(split)
    for tool, templates in PHRASINGS[split].templates.items():
        of_tool = [row for row in rows if row.call["tool"] == tool]
        assert len(of_tool) >= 20
        assert {row.template for row in of_tool} == set(templates)
        for name in TOOLS[tool] if tool else ():
            present = {name.rstrip("?") in row.call["arguments"] for row in of_tool}
            assert present == ({True, False} if name.endswith("?") else {True})


def test_every_argument_can_be_read_off_the_request(train: list[Request], held_out: list[Request]) -> None:
    """Words stand in the request as they are in the call; numbers, dates and times in one of their spoken forms."""
    for row in train + held_out:
        for name in row.call.get("arguments", {}):
            spoken = ways_to_say(name, row.slots[name])
            assert any(re.search(rf"(?<!\w){re.escape(way)}(?!\w)", row.text) for way in spoken), row


def test_held_out_templates_are_none_of_the_training_templates(train: list[Request], held_out: list[Request]) -> None:
    known, new = {bare(row.template) for row in train}, {bare(row.template) for row in held_out}
    assert len(known) > 200
    assert len(new) > 80
    assert known.isdisjoint(new)
    # Nor is one a light edit of another: measured on words, no pair shares more than 80 %.
    closest = max(
        difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio() for one in new for other in known
    )
    assert closest <= 0.8


def test_held_out_politeness_and_hesitation_are_new() -> None:
    for part in ("openers", "closers", "fillers"):
        assert set(getattr(PHRASINGS["train"], part)).isdisjoint(getattr(PHRASINGS["held_out"], part))


def test_held_out_values_occur_in_no_training_call(train: list[Request], held_out: list[Request]) -> None:
    known, new = argument_values(train), argument_values(held_out)
    assert len(known) > 800
    assert len(new) > 300
    assert known.isdisjoint(new)
    assert {value.lower() for value in known}.isdisjoint(value.lower() for value in new)


def test_held_out_words_occur_in_no_training_request(train: list[Request], held_out: list[Request]) -> None:
    """Stricter than the calls: names and texts are not even part of what a training row says."""
    heard = "\n".join(f" {' '.join(re.findall(r'[a-z]+', row.text.lower()))} " for row in train)
    words = {value for row in held_out for value in row.slots.values() if isinstance(value, str)}
    assert len(words) > 150
    assert [word for word in words if f" {' '.join(re.findall('[a-z]+', word.lower()))} " in heard] == []


def test_held_out_numbers_dates_and_times_follow_the_rule(train: list[Request], held_out: list[Request]) -> None:
    """Also in requests that no tool serves, where they are no arguments."""
    for rows, expected in ((train, False), (held_out, True)):
        numbers = [value for row in rows for value in row.slots.values() if not isinstance(value, str)]
        assert {type(value) for value in numbers} == {int, Decimal, datetime.date, datetime.time}
        assert {is_held_out(value) for value in numbers} == {expected}


def test_held_out_pools_share_nothing_with_training_pools() -> None:
    every = {split: {str(value).lower() for pool in VALUES[split].values() for value in pool} for split in VALUES}
    artists = {split: {ARTISTS[song].lower() for song in VALUES[split]["song"]} for split in VALUES}
    assert every["train"].isdisjoint(every["held_out"])
    assert artists["train"].isdisjoint(artists["held_out"])
    for split, pools in VALUES.items():
        for slot, pool in pools.items():
            assert len(set(pool)) == len(pool), (split, slot)


def test_templates_use_only_their_tool_s_slots() -> None:
    for phrasings in PHRASINGS.values():
        for tool, templates in phrasings.templates.items():
            assert len(set(templates)) == len(templates)
            for template in templates:
                slots = [slot for _, slot, _, _ in string.Formatter().parse(template) if slot]
                assert len(set(slots)) == len(slots)
                if tool is not None:  # what a timer or a payment is for is said, but is no argument of its call
                    talk = {"set_timer": {"label"}, "send_money": {"note"}}.get(tool, set())
                    assert set(slots) <= {name.rstrip("?") for name in TOOLS[tool]} | talk


@pytest.mark.parametrize(
    ("slot", "value", "ways"),
    [
        ("date", datetime.date(2026, 3, 1), {"March 1", "March 1st", "the 1st of March"}),
        ("date", datetime.date(2026, 12, 12), {"December 12", "December 12th", "the 12th of December"}),
        ("date", datetime.date(2026, 5, 22), {"May 22", "May 22nd", "the 22nd of May"}),
        ("date", datetime.date(2026, 5, 23), {"May 23", "May 23rd", "the 23rd of May"}),
        ("time", datetime.time(15, 0), {"3 pm", "3 in the afternoon"}),
        ("time", datetime.time(12, 5), {"12:05 pm", "12:05 in the afternoon"}),
        ("time", datetime.time(9, 30), {"9:30 am", "9:30 in the morning"}),
        ("time", datetime.time(20, 45), {"8:45 pm", "8:45 in the evening"}),
        ("amount", Decimal("12.75"), {"$12.75", "12.75 dollars"}),
        ("people", 3, {"3", "three"}),
        ("people", 14, {"14"}),
        ("minutes", 3, {"3"}),
        ("city", "Oslo", {"Oslo"}),
    ],
)
def test_values_are_said_as_people_say_them(slot: str, value: object, ways: set[str]) -> None:
    assert set(ways_to_say(slot, value)) == ways
