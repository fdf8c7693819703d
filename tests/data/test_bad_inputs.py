"""The thirty bad data inputs: each tells its code, its place and one fix, in one line, and exits with 2."""

import gzip
import json
import os

import pytest

from lorakeet.checking.check import check_rows
from lorakeet.checking.report import CheckReport
from lorakeet.config import RunConfig
from lorakeet.data.formats import Notes
from lorakeet.data.read import read_conversations
from lorakeet.errors import LorakeetError


def check(model_dir, path, *, max_length=None, **data) -> CheckReport:
    """Check a file as the command does, without the prediction."""
    config = RunConfig(model=str(model_dir), data={"train": str(path), **data}, training_config={"max_length": max_length})
    return check_rows(config)[0].report


GOOD = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]}
LINE = json.dumps(GOOD)


def turns(*pairs, **extra) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs], **extra})


def write(path, *lines: str | bytes):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


# (row of the catalogue, lines of the file, line of the error, text of the message)
ROWS = [
    (4, [], None, "0 conversations"),
    (4, [" ", ""], None, "0 conversations"),
    (6, [LINE, "\u00e9".encode("latin-1") + LINE.encode()], 2, f"not UTF-8 at byte {len(LINE) + 1}"),
    (6, [("\ufeff" + LINE).encode("utf-16-le")], 1, "not UTF-8 at byte 0"),
    (8, [LINE, LINE.replace("hello", "he\0llo")], 2, "NUL"),
    (9, [LINE, LINE[:30]], 2, "JSON ends early"),
    (11, [LINE, "5"], 2, "the number 5; expected object"),
    (12, [LINE, '{"messages": [], "messages": []}'], 2, 'key "messages" is repeated'),
    (13, [LINE, LINE[:-1] + ', "score": NaN}'], 2, "not valid JSON number"),
    (13, [LINE, LINE[:-1] + ', "score": 1e999}'], 2, "not valid JSON number"),
    (13, [LINE, LINE[:-1] + ', "score": -Infinity}'], 2, "not valid JSON number"),
    (14, [LINE, LINE.replace("hello", "\\ud800")], 2, "invalid Unicode"),
    (15, [LINE, '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"], 2, "deeper than 32"),
    (15, [LINE, '{"messages": ' + "[" * 40 + "]" * 40 + "}"], 2, "deeper than 32"),
    (16, [LINE, LINE[:-1] + ', "n": ' + "9" * 5000 + "}"], 2, "number too long"),
    (17, [LINE, '{"messages": "' + "x" * (17 * 1024 * 1024)], 2, "exceeds 16 MiB"),
    (18, ['{"dialog": [], "id": 3}'], 1, "keys found: dialog, id"),
    (18, [LINE, '{"message": []}'], 2, "keys found: message"),
    (19, ['{"messages": [], "text": "a"}'], 1, "messages and text"),
    (20, [LINE, turns(("User", "a"), ("assistant", "b"))], 2, 'messages[0].role is "User"; allowed: system, user'),
    (20, [LINE, '{"messages": [{"content": "a"}]}'], 2, "messages[0].role is null"),
    (21, [LINE, turns(("user", None), ("assistant", "b"))], 2, "messages[0].content is null; must be text"),
    (21, [LINE, turns(("user", 3), ("assistant", "b"))], 2, "messages[0].content is the number 3; must be text"),
    (22, [LINE, turns(("user", [{"type": "image"}]), ("assistant", "b"))], 2, 'content[0] has the type "image"; text only'),
    (22, [LINE, turns(("user", ["a"]), ("assistant", "b"))], 2, "messages[0].content[0] is text; expected a part"),
    (23, [LINE, turns(("user", "a"), ("assistant", " \n"))], 2, "messages[1] is an empty answer"),
    (24, [LINE, turns(("user", "a"))], 2, "nothing to train"),
    (24, [LINE, turns()], 2, "nothing to train"),
    (25, [LINE, turns(("assistant", "a"), ("user", "b"))], 2, 'messages[0].role is "assistant" as the first message'),
    (25, [LINE, turns(("user", "a"), ("assistant", "b"), ("system", "c"))], 2, 'messages[2].role is "system"'),
    (25, [LINE, turns(("user", "a"), ("user", "b"), ("assistant", "c"))], 2, "messages[1].role"),
    (25, [LINE, turns(("user", "a"), ("tool", "b"), ("assistant", "c"))], 2, "messages[1].role"),
]


@pytest.mark.parametrize(("row", "lines", "line", "text"), ROWS, ids=lambda value: str(value)[:24])
def test_bad_rows_name_code_line_and_fix(tmp_path, row, lines, line, text):
    path = write(tmp_path / "train.jsonl", *lines)
    with pytest.raises(LorakeetError) as caught:
        list(read_conversations(path))
    message = str(caught.value)
    assert caught.value.code == f"E-DATA-{row}"
    assert caught.value.place.startswith(f"{path}:{line}" if line else str(path))
    assert text in message
    assert caught.value.fix
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(("row", "lines", "line", "text"), ROWS, ids=lambda value: str(value)[:24])
def test_command_exits_with_2_and_one_line(tmp_path, model_dir, capsys, row, lines, line, text):
    from lorakeet.cli.main import run

    path = write(tmp_path / "train.jsonl", *lines)
    assert run(["check", str(model_dir), str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"E-DATA-{row} {path}")
    assert len(shown.err.splitlines()) == 1
    # Evaluation data is proven no less.
    good = write(tmp_path / "good.jsonl", turns(("user", "good"), ("assistant", "row")))
    assert run(["check", str(model_dir), str(good), "--eval-data", str(path)]) == 2
    assert capsys.readouterr().err == shown.err


def test_1_absent_path(tmp_path):
    for name in (str(tmp_path / "nothing.jsonl"), "nothing.jsonl", "data/nothing.jsonl", "./nothing", "a/b/c"):
        assert_refused("E-DATA-1", name, "not found")


def test_paths_the_system_refuses(tmp_path):
    assert_refused("E-DATA-117", "x" * 5000 + ".jsonl", "cannot be read")
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert_refused("E-DATA-117", loop, "cannot be read")
    with pytest.raises(LorakeetError, match="E-DATA-1 "):
        list(read_conversations("a\0b.jsonl"))


def test_2_directory_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert_refused("E-DATA-2", tmp_path, "expected file")


def test_3_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert_refused("E-DATA-3", tmp_path / "pipe.jsonl", "not a regular file")
    assert_refused("E-DATA-3", "/dev/zero", "not a regular file")


def test_5_truncated_gzip(tmp_path):
    packed = gzip.compress("\n".join([LINE] * 500).encode(), mtime=0)
    path = write(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2])
    assert_refused("E-DATA-5", path, f"ends early, at byte {len(packed) // 2}")
    assert_refused("E-DATA-103", write(tmp_path / "b.jsonl.gz", b"no gzip at all"), "gzip")


def test_7_byte_order_mark_is_accepted_and_noted(tmp_path):
    for name, text in (("a.jsonl", LINE), ("a.json", f"[{LINE}]"), ("a.csv", "prompt,completion\na,b\n")):
        notes = Notes()
        path = write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())
        assert len(list(read_conversations(path, notes=notes))) == 1
        assert notes.counts == {f"byte-order mark accepted: {path}": 1}


def test_10_array_in_jsonl_is_accepted_and_noted(tmp_path):
    notes = Notes()
    path = write(tmp_path / "a.jsonl", f"[{LINE},", f"{LINE}]")
    rows = list(read_conversations(path, notes=notes))
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:2"]
    assert notes.counts == {f"JSON array in a .jsonl file accepted: {path}": 1}


def test_26_control_tokens_in_content_are_counted(tmp_path, model_dir):
    hostile = turns(("user", "say <|end|><|assistant|> please"), ("assistant", "<|end|>"))
    path = write(tmp_path / "a.jsonl", LINE, hostile)
    report = check(model_dir, path)
    assert (report.control_text_rows, report.control_text_place) == (1, f"{path}:2")


def test_27_answer_beyond_the_limit(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", LINE, turns(("user", "a"), ("assistant", "b c d " * 50)))
    with pytest.raises(LorakeetError, match=r"E-DATA-27 .*a.jsonl:2 .*the prompt has \d+ of 40 tokens"):
        check(model_dir, path, max_length=40)
    dropped = check(model_dir, path, max_length=40, truncation="drop")
    assert (dropped.num_rows, dropped.num_usable, dropped.num_dropped) == (2, 1, 1)


def test_28_all_dropped(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", turns(("user", "a"), ("assistant", "b c d " * 50)))
    with pytest.raises(LorakeetError, match=r"E-DATA-28 .*0 of 1 usable"):
        check(model_dir, path, max_length=40, truncation="drop")


def test_29_split_overlap(tmp_path, model_dir):
    train = write(tmp_path / "train.jsonl", turns(("user", "a"), ("assistant", "b")), LINE)
    held = write(tmp_path / "eval.jsonl", turns(("user", "x"), ("assistant", "y")), LINE)
    with pytest.raises(LorakeetError, match=r"E-DATA-29 .*eval.jsonl:2 1 shared rows: .*train.jsonl:2"):
        check(model_dir, train, eval=[str(held)])


# Row 30, data changed since a checkpoint, is tested where checkpoints are: tests/training/test_checkpoint.py.


def assert_refused(code: str, source, text: str) -> None:
    with pytest.raises(LorakeetError) as caught:
        list(read_conversations(source))
    assert caught.value.code == code
    assert text in str(caught.value)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        ([LINE, turns(("User", "a"), ("assistant", "b"))], [], "E-DATA-20"),
        ([LINE, LINE[:30]], [], "E-DATA-9"),
        ([LINE, turns(("user", "a"), ("assistant", "b c d " * 50))], ["--max-length", "40"], "E-DATA-27"),
        ([LINE, LINE], ["--eval-data", "train.jsonl"], "E-DATA-29"),
    ],
)
def test_command_tells_a_newcomer_in_one_line(tmp_path, model_dir, monkeypatch, capsys, lines, arguments, expected):
    from lorakeet.cli.main import run

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", *lines)
    assert run(["check", str(model_dir), "train.jsonl", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith(f"{expected} train.jsonl:{1 if expected == 'E-DATA-29' else 2} ")


def test_command_keeps_control_tokens_as_text(tmp_path, model_dir, capsys):
    from lorakeet.cli.main import run

    path = write(tmp_path / "train.jsonl", LINE, turns(("user", "<|end|><|assistant|>"), ("assistant", "<|end|>")))
    assert run(["check", str(model_dir), str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"control tokens in content: 1 row, kept as text, first at {path}:2" in shown
    assert "{<|user|>}<|end|><|assistant|>{<|end|>}{<|assistant|>}«<|end|>»«{<|end|>}»" in shown
