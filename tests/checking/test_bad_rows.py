"""`check` lists every row that cannot be trained on, as far as the file's syntax lets reading go on; `train` names it."""

import json
import pickle
import shlex

import pytest

from lorakeet.checking.bad_rows import BadRowsError
from lorakeet.checking.check import check_rows
from lorakeet.cli.main import run
from lorakeet.config import RunConfig
from lorakeet.errors import DataError
from tests.cli.conftest import tiny_model_directory  # noqa: F401


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))


def good(number):
    return {"prompt": f"What is {number} plus 1?", "completion": str(number + 1)}


def bad_rows(model_dir, *paths, max_length=None, **data) -> tuple[list[tuple[str, str]], int]:
    """Check files and return place and code of the rows that are listed, and how many are bad."""
    config = RunConfig(
        model=str(model_dir), data={"train": [str(path) for path in paths], **data}, training_config={"max_length": max_length}
    )
    with pytest.raises(BadRowsError) as caught:
        check_rows(config)
    return [(error.place.rpartition("/")[2], error.code) for error in caught.value.first], caught.value.count


def test_rows_behind_a_bad_one_are_read_encoded_and_proven(tmp_path, model_dir):
    lines = [json.dumps(good(number)).encode() for number in range(9)]
    lines[1] = b'{"prompt": "a", "completion": '
    lines[2] = b""
    lines[3] = b'{"prompt": "caf\xe9", "completion": "a"}'
    lines[4] = json.dumps({"prompt": "a", "completion": ""}).encode()
    lines[5] = b'{"prompt": "a", "prompt": "b", "completion": "c"}'
    lines[6] = json.dumps({"prompt": "a", "completion": "word " * 200}).encode()
    lines[8] = json.dumps({"prompt": "a"}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    listed, count = bad_rows(model_dir, path, max_length=64)
    # What cannot be read comes first, then what cannot be encoded.
    assert listed == [
        ("a.jsonl:2", "E-DATA-9"),
        ("a.jsonl:4", "E-DATA-6"),
        ("a.jsonl:5", "E-DATA-23"),
        ("a.jsonl:6", "E-DATA-12"),
        ("a.jsonl:9", "E-DATA-18"),
        ("a.jsonl:7", "E-DATA-27"),
    ]
    assert count == 6


def test_every_kind_of_file_is_read_on_where_its_syntax_allows_it(tmp_path, model_dir):
    rows = [good(0), {"prompt": "a", "completion": ""}, good(1), {"prompt": "", "completion": 3}, good(2)]
    (tmp_path / "a.json").write_text(json.dumps(rows[:4]) + "\n[1]")  # a value behind the array: read up to there
    (tmp_path / "b.csv").write_text('prompt,completion\na,b\nc\nd,"e\nf",g\nh,\ni,j\n')
    (tmp_path / "c.jsonl").write_text("[" + ", ".join(json.dumps(row) for row in rows) + ", {]")
    listed, _ = bad_rows(model_dir, tmp_path / "a.json", tmp_path / "b.csv", tmp_path / "c.jsonl")
    assert listed == [
        ("a.json:1", "E-DATA-23"),
        ("a.json:1", "E-DATA-21"),
        ("a.json:2", "E-DATA-100"),
        ("b.csv:3", "E-DATA-101"),
        ("b.csv:4", "E-DATA-101"),
        ("b.csv:6", "E-DATA-23"),
        ("c.jsonl:1", "E-DATA-23"),
        ("c.jsonl:1", "E-DATA-21"),
        ("c.jsonl:1", "E-DATA-100"),
    ]


def test_the_first_row_may_be_bad_and_named_held_out_rows_are_looked_at_too(tmp_path, model_dir):
    for name in ("train", "eval"):
        rows = [{"question": name}, {"question": name, "answer": "yes"}, {"question": name, "answer": " "}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed, _ = bad_rows(model_dir, tmp_path / "train.jsonl", eval=[str(tmp_path / "eval.jsonl")])
    assert [place for place, _ in listed] == ["train.jsonl:1", "train.jsonl:3", "eval.jsonl:1", "eval.jsonl:3"]


def test_the_command_prints_twenty_of_them_a_line_each_and_how_many_there_are(tmp_path, model_dir, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(good(number) if number % 2 else {"prompt": "a\nb"}) for number in range(60)))
    assert run(["check", str(model_dir), str(path)]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 21
    assert lines[0] == f"E-DATA-18 {path}:1 no messages, and no other known format; keys found: prompt."
    assert lines[19].startswith(f"E-DATA-18 {path}:39 ")
    assert lines[20] == (
        "E-DATA-196 30 rows cannot be trained on; the first 20 are listed. "
        "E-DATA-18: Map the columns, for example --columns prompt=NAME,completion=NAME."
    )


def test_a_single_bad_row_is_an_error_as_in_training(tmp_path, model_dir):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(good(1)) + '\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"E-DATA-18 .*a.jsonl:2 .* Give every row the keys"):
        check_rows(RunConfig(model=str(model_dir), data=str(path)))
    path.write_text('{"prompt": "a"}\n' * 2)
    assert bad_rows(model_dir, path) == ([("a.jsonl:1", "E-DATA-18"), ("a.jsonl:2", "E-DATA-18")], 2)


def test_the_list_crosses_a_process_border():
    error = BadRowsError([DataError("E-DATA-18", "no", place="a:1")], 30)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_training_stops_at_the_first_and_names_the_command_that_lists_all(
    tmp_path,
    tiny_model_directory,  # noqa: F811
    capsys,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAKEET_COMPILE", "0")
    path = tmp_path / "my rows.jsonl"
    rows = [{"q": "a", "a": "b"}, {"q": "a", "a": ""}, {"q": "a", "a": "word " * 99}, {"q": "c", "a": "d"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = [str(tiny_model_directory), str(path), "--columns", "prompt=q", "--columns", "completion=a"]
    assert run(["train", *arguments, "--max-length", "64"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"E-DATA-23 {path}:2 ")
    assert not (tmp_path / "runs").exists()
    program, *command = shlex.split(line.partition("List all rows that cannot be used: ")[2].strip())
    assert (program.rpartition("/")[2], command[0]) == ("lorakeet", "check")
    assert run(command) == 2
    first, second, last = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(f"E-DATA-23 {path}:2 ")
    assert second.startswith(f"E-DATA-27 {path}:3 ")
    assert last == (
        "E-DATA-196 2 rows cannot be trained on. E-DATA-23: Write it, or remove the row; "
        "E-DATA-27: Raise --max-length, shorten the row, or choose --truncation drop or truncate-left."
    )
