"""Reading: every kind of file gives the same rows, weights, the hub's library, flat memory."""

import csv
import gzip
import json
import tracemalloc

import pytest

from lorakeet.data.conversation import Message
from lorakeet.data.formats import Notes
from lorakeet.data.read import _hub_rows, read_conversations
from lorakeet.errors import ConfigError, DataError

ROWS = [{"prompt": f'question {i}, with "quotes"\nand lines', "completion": f"answer {i} é你"} for i in range(700)]


def write_all(folder):
    """Write the same rows as every kind of file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = "\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(ROWS)).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "stream.json").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS), encoding="utf-8")
    with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    return sorted(folder.iterdir())


def said(path, **options):
    return [[message.content for message in row.messages] for row in read_conversations(path, **options)]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    expected = [[row["prompt"], row["completion"]] for row in ROWS]
    paths = write_all(tmp_path)
    assert len(paths) == 10
    for path in paths:
        assert said(path) == expected, path
    assert said(tmp_path) == expected * 10
    assert said([paths[0], paths[2]]) == expected * 2


def test_places_are_lines(tmp_path):
    write_all(tmp_path)
    names = ("a.jsonl", "a.json", "a.csv")
    places = {name: [row.place for row in read_conversations(tmp_path / name)] for name in names}
    assert places["a.jsonl"][4] == f"{tmp_path}/a.jsonl:5"
    for name in ("a.json", "a.csv"):
        lines = (tmp_path / name).read_text(encoding="utf-8").split("\n")
        for place in places[name][::50]:
            start = lines[int(place.rsplit(":", 1)[1]) - 1]
            assert start.lstrip(' "').startswith("{" if name == "a.json" else "question"), place


def test_weights_repeat_and_thin_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS[:10]))
    assert len(said({str(path): 2})) == 20
    assert len(said({str(path): 0.3})) == 3
    assert said(f"{path}@0.5") == said(path)[1::2]
    assert len(said(f"{path}@1.5")) == 15
    assert len(said([path, path])) == 20
    with pytest.raises(DataError, match="E-DATA-116"):
        said({str(path): 0})


def test_hub_ids_go_through_datasets(tmp_path):
    """A local folder stands in for the hub: the library is the real one."""
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:3]))
    rows = list(_hub_rows(f"{tmp_path}:train"))
    assert [row for _, row in rows] == ROWS[:3]
    assert rows[0][0] == f"{tmp_path}:train:1"
    assert [row for _, row in _hub_rows(f"{tmp_path}:default:train")] == ROWS[:3]
    with pytest.raises(DataError, match="E-DATA-105"):
        list(_hub_rows(f"{tmp_path}:nothing"))


def test_memory_stays_flat(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"prompt": "x" * 2000, "completion": "y" * 2000}) + "\n"
    with open(path, "w") as file:
        for _ in range(10_000):
            file.write(line)
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    count = sum(1 for _ in read_conversations(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 1_000_000


def test_arrays_stream_too(tmp_path):
    path = tmp_path / "large.json"
    line = json.dumps({"prompt": "x" * 2000, "completion": "é" * 1000})
    path.write_text("[" + ",\n".join([line] * 3_000) + "]", encoding="utf-8")
    tracemalloc.start()
    count = sum(1 for _ in read_conversations(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3_000
    assert peak < 2_000_000


@pytest.mark.parametrize("size", [1, 2, 3, 5, 65536])
def test_characters_cut_by_a_read_are_whole(tmp_path, size, monkeypatch):
    from lorakeet.data import read

    text = json.dumps([{"prompt": "aé你🦜b" * 3, "completion": "🦜é"}], ensure_ascii=False)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    original = read._Window.grow
    monkeypatch.setattr(read._Window, "grow", lambda self, _: original(self, size))
    assert said(path) == [["aé你🦜b" * 3, "🦜é"]]


@pytest.mark.parametrize("escaped", [True, False])
def test_values_cut_by_a_read_anywhere_are_whole(tmp_path, escaped, monkeypatch):
    """Every cut of a text with escapes, literals and exponents in it."""
    from lorakeet.data import read

    row = {"prompt": 'é🦜\\"\n\t', "completion": "b", "a": [True, False, None, -1.5e-7, 12345], "b": {}}
    text = json.dumps([row, row], ensure_ascii=escaped, indent=1)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    original = read._Window.grow
    for cut in range(1, len(text)):
        sizes = iter([cut])
        with monkeypatch.context() as patched:
            patched.setattr(read._Window, "grow", lambda self, _, sizes=sizes: original(self, next(sizes, 1 << 16)))
            assert said(path) == [[row["prompt"], "b"]] * 2, cut


def first(tmp_path, row, **options):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    return next(iter(read_conversations(path, **options)))


def test_conversational_prompt_and_completion(tmp_path):
    said = [("user", "a"), ("assistant", "b"), ("user", "c")]
    earlier = [{"role": role, "content": content} for role, content in said]
    row = first(tmp_path, {"prompt": earlier, "completion": [{"role": "assistant", "content": "d"}]})
    assert [message.train for message in row.messages] == [None, False, None, None]


def test_sharegpt_calls_and_observations(tmp_path):
    call = json.dumps({"name": "add", "arguments": {"a": 1}})
    turns = [("human", "1+1?"), ("function_call", call), ("observation", "2"), ("gpt", "It is 2.")]
    row = first(tmp_path, {"conversations": [{"from": who, "value": what} for who, what in turns]})
    assert [message.role for message in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1] == Message("assistant", "", tool_calls=({"name": "add", "arguments": {"a": 1}},))


def test_messages_in_a_csv_column(tmp_path):
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["messages"], [messages]])
    assert said(path) == [["a", "b"]]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"train": "yes"}, "E-DATA-106"),
        ({"weight": 0.5}, "E-DATA-106"),
        ({"weight": 0, "train": True}, "E-DATA-106"),
        ({"tool_calls": [{"name": "x"}]}, "E-DATA-114"),
        ({"tool_calls": [{"name": "x", "arguments": "{"}]}, "E-DATA-9"),
        ({"tool_calls": [{"name": "x", "arguments": [1]}]}, "E-DATA-114"),
        ({"name": 3}, "E-DATA-21"),
    ],
)
def test_wrong_fields_of_a_message(tmp_path, message, code):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **message}]}
    with pytest.raises(DataError) as caught:
        first(tmp_path, row)
    assert caught.value.code == code
    assert "a.jsonl:1" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": {"role": "user"}}, "E-DATA-115"),
        ({"messages": ["hello"]}, "E-DATA-11"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "E-DATA-110"),
        ({"messages": [{"role": "user", "content": "a", "train": True}]}, "E-DATA-107"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "E-DATA-108"),
        ({"messages": [], "tools": [1]}, "E-DATA-113"),
        ({"text": " "}, "E-DATA-23"),
    ],
)
def test_wrong_fields_of_a_row(tmp_path, row, code):
    with pytest.raises(DataError) as caught:
        first(tmp_path, row)
    assert caught.value.code == code


def test_ignored_keys_are_noted(tmp_path):
    notes = Notes()
    row = {"messages": [{"role": "user", "content": "a", "mood": "x"}, {"role": "assistant", "content": "b"}]}
    first(tmp_path, row, notes=notes)
    assert notes.counts == {"key ignored in messages: mood": 1}
    assert list(notes.formats.values()) == ["messages"]


def test_options_are_checked(tmp_path):
    row = {"q": "a", "a": "b"}
    with pytest.raises(ConfigError, match=r"E-CFG-126.*Did you mean sharegpt"):
        first(tmp_path, row, format="sharegtp")
    with pytest.raises(ConfigError, match="E-CFG-127"):
        first(tmp_path, row, roles={"human": "person"})
    with pytest.raises(ConfigError, match="E-CFG-125"):
        first(tmp_path, row, columns={"query": "q"})
    with pytest.raises(DataError, match=r'E-DATA-18 .*no column "z"; keys found: q, a'):
        first(tmp_path, row, columns={"prompt": "z", "completion": "a"})


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.csv", "prompt,completion\na\n", "E-DATA-101"),
        ("a.csv", "prompt,prompt\na,b\n", "E-DATA-12"),
        ("a.csv", 'prompt,completion\na,"b\n', "E-DATA-9"),
        ("a.csv", "", "E-DATA-4"),
        ("a.json", '[{"prompt": "a", "completion": "b"}', "E-DATA-9"),
        ("a.json", '[{"prompt": "a", "completion": "b"} {}]', "E-DATA-100"),
        ("a.json", '[{"prompt": "a", "completion": "b"}] x', "E-DATA-100"),
        ("a.json", "[]", "E-DATA-4"),
        ("a.parquet", "PAR1 no", "E-DATA-102"),
        ("a.zip", "PK", "E-DATA-104"),
        ("a.jsonl", '{"prompt": "a"} {"completion": 1}', "E-DATA-100"),
    ],
)
def test_damaged_files(tmp_path, name, data, code):
    (tmp_path / name).write_text(data)
    with pytest.raises(DataError) as caught:
        list(read_conversations(tmp_path / name))
    assert caught.value.code == code
    assert name in caught.value.place
