"""Data as people have it: other tools' keys, columnar files, parts, templated text, roles, kinds of files.

Whatever would be learned wrongly without a word is either read for what it means or refused with a way on.
"""

import io
import json
import sys

import pytest

from lorakeet.checking.check import check_rows
from lorakeet.config import RunConfig
from lorakeet.data.conversation import Message
from lorakeet.data.formats import Notes
from lorakeet.data.read import MAX_ROW_BYTES, _hub_rows, read_conversations
from lorakeet.errors import ConfigError, DataError

USER = {"role": "user", "content": "q"}


def read(tmp_path, *rows, name="a.jsonl", **options):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return list(read_conversations(path, **options))


def answer(**keys):
    return {"messages": [USER, {"role": "assistant", "content": "Elbe", **keys}]}


def refused(tmp_path, code, *rows, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        read(tmp_path, *rows, **options)
    assert caught.value.code == code, caught.value
    assert caught.value.fix
    assert "a.jsonl:1" in caught.value.place or options.get("name")
    return caught.value


# Columnar files


CALLS = [
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}]}
    for name, arguments in (("tide", {"port": "Ribe"}), ("move", {"x": 3}))
]
TOOLS = [
    {"name": "tide", "parameters": {"properties": {"port": {"type": "string", "default": ""}}}},
    {"name": "move", "parameters": {"properties": {"x": {"type": "integer", "enum": [1, None]}}, "strict": False}},
]


def as_parquet(folder, rows):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def test_null_fields_of_a_parquet_file_are_no_arguments(tmp_path):
    notes = Notes()
    rows = list(read_conversations(as_parquet(tmp_path, [{**row, "tools": TOOLS} for row in CALLS]), notes=notes))
    assert [row.messages[1].tool_calls for row in rows] == [
        ({"name": "tide", "arguments": {"port": "Ribe"}},),
        ({"name": "move", "arguments": {"x": 3}},),
    ]
    assert [list(row.tools) for row in rows] == [TOOLS, TOOLS]
    (note,) = notes.counts
    assert note.startswith("null field left out of tool calls and tool definitions")
    assert notes.counts[note] == 2 + 2 * 3


def test_null_fields_of_a_hub_dataset_are_no_arguments(tmp_path, monkeypatch):
    """A local folder stands in for the hub: the library is the real one."""
    pytest.importorskip("datasets")
    from lorakeet.data import read

    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in CALLS))
    monkeypatch.setattr(read, "_hub_rows", lambda name: _hub_rows(f"{tmp_path}:train"))
    rows = list(read_conversations("owner/name"))
    assert [row.messages[1].tool_calls[0]["arguments"] for row in rows] == [{"port": "Ribe"}, {"x": 3}]


def test_nulls_that_somebody_wrote_stay(tmp_path):
    call = {"name": "tide", "arguments": {"port": None, "at": [None, 1]}}
    (row,) = read(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [{"default": None}]})
    assert row.messages[1].tool_calls == (call,)
    assert row.tools == ({"default": None},)
    path = as_parquet(
        tmp_path,
        [
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"at": [None, 1]}}]}]},
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"at": [2], "no": False}}]}]},
        ],
    )
    first, second = read_conversations(path)
    assert first.messages[1].tool_calls[0]["arguments"] == {"at": [None, 1]}
    assert second.messages[1].tool_calls[0]["arguments"] == {"at": [2], "no": False}


def test_arguments_written_as_text_keep_their_nulls_in_parquet(tmp_path):
    call = {"name": "tide", "arguments": '{"port": null}'}
    (row,) = read_conversations(
        as_parquet(tmp_path, [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}])
    )
    assert row.messages[1].tool_calls[0]["arguments"] == {"port": None}


# Marks of other tools


WHOLE = [{"begin_offset": 0, "end_offset": 1, "train": False}, {"begin_offset": 2, "end_offset": 3, "train": False}]


@pytest.mark.parametrize(
    ("marks", "train"),
    [
        ({"loss": False}, False),
        ({"loss": 0}, False),
        ({"loss": True}, True),
        ({"training": False}, False),
        ({"training": 1}, True),
        ({"train": 0}, False),
        ({"train_detail": WHOLE}, False),
        ({"train_detail": None, "loss": None}, None),
        ({"loss": False, "weight": 0}, False),
    ],
)
def test_marks_of_other_tools_are_honoured(tmp_path, marks, train):
    (row,) = read(tmp_path, answer(**marks))
    assert row.messages[1].train is train


def test_sharegpt_mark_is_honoured(tmp_path):
    said = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "WRONG", "loss": False},
        {"from": "human", "value": "b"},
        {"from": "gpt", "value": "right"},
    ]
    (row,) = read(tmp_path, {"conversations": said})
    assert [message.train for message in row.messages] == [None, False, None, None]


@pytest.mark.parametrize(
    ("marks", "code"),
    [
        ({"loss": 0.5}, "E-DATA-106"),
        ({"training": "no"}, "E-DATA-106"),
        ({"loss": True, "train": False}, "E-DATA-106"),
        ({"train_detail": [{"begin_offset": 0}]}, "E-DATA-106"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "E-DATA-191"),
        ({"train_detail": [{"begin_offset": 1, "end_offset": 3, "train": True}]}, "E-DATA-191"),
        ({"train_detail": [WHOLE[0], {**WHOLE[1], "train": True}]}, "E-DATA-191"),
        ({"loss_mask": [0, 1]}, "E-DATA-191"),
        ({"masked": True}, "E-DATA-191"),
    ],
)
def test_marks_that_cannot_be_honoured_are_refused(tmp_path, marks, code):
    refused(tmp_path, code, answer(**marks))


@pytest.mark.parametrize("key", ["loss", "training", "train"])
def test_a_question_cannot_be_marked(tmp_path, key):
    error = refused(tmp_path, "E-DATA-107", {"messages": [{**USER, key: True}, {"role": "assistant", "content": "b"}]})
    assert f"messages[0].{key}" in error.message


# A row's own verdict


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "good", "rejected": "bad", "label": False},
        {"prompt": "q", "completion": "good", "rejected": "bad"},
        {"prompt": "q", "completion": "bad", "label": False},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"chosen": [USER], "rejected": [USER]},
        {**answer(), "rejected_response": "bad"},
        {"instruction": "q", "output": "bad", "kto_tag": False},
        {"prompt": "q", "completion": "bad", "rejected": True},
    ],
)
def test_preference_data_is_refused(tmp_path, row):
    assert "--columns" in refused(tmp_path, "E-DATA-190", row).fix


def test_a_later_row_of_preference_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"E-DATA-190 .*a\.jsonl:2"):
        read(tmp_path, answer(), {**answer(), "label": False})
    (tmp_path / "a.csv").write_text("prompt,completion,label\nq,good,True\nq,bad,False\n")
    with pytest.raises(DataError, match=r"E-DATA-190 .*a\.csv:3"):
        list(read_conversations(tmp_path / "a.csv"))


def test_the_good_side_can_be_mapped(tmp_path):
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (found,) = read(tmp_path, row, columns={"prompt": "prompt", "completion": "chosen"})
    assert [message.content for message in found.messages] == ["q", "good"]
    pair = {"chosen": answer()["messages"], "rejected": [USER]}
    (found,) = read(tmp_path, pair, columns={"messages": "chosen"})
    assert found.messages[1].content == "Elbe"


def test_good_labels_and_other_keys_are_noted(tmp_path, model_dir):
    row = {"prompt": "q", "completion": "good", "label": True, "source": "web", "id": None, "rejected": ""}
    notes = Notes()
    read(tmp_path, row, {**row, "system": "s"}, notes=notes)
    assert notes.counts == {"key ignored in rows: label": 2, "key ignored in rows: source": 2}
    report = check_rows(RunConfig(model=str(model_dir), data=str(tmp_path / "a.jsonl")))[0].report
    assert report.notes["key ignored in rows: source"] == 2


def test_a_row_that_is_not_to_be_learned_is_refused(tmp_path):
    refused(tmp_path, "E-DATA-191", {"prompt": "q", "completion": "bad", "loss": False})
    refused(tmp_path, "E-DATA-191", {**answer(), "weight": 0})
    assert len(read(tmp_path, {**answer(), "weight": 1}, {**answer(), "loss": 2.31})) == 2


# Content as parts


def test_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "Elbe."}]
    (row,) = read(tmp_path, {"messages": [USER, {"role": "assistant", "content": parts}]})
    assert row.messages[1].content == "The Elbe."
    (row,) = read(tmp_path, {"conversations": [{"from": "human", "value": parts}, {"from": "gpt", "value": "b"}]})
    assert row.messages[0].content == "The Elbe."


@pytest.mark.parametrize("name", ["image", "image_url", "input_audio", "video", "tool_use", 3, None])
def test_other_parts_are_refused_by_their_type(tmp_path, name):
    part = {"type": name, "image_url": {"url": "data:"}}
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}, answer()["messages"][1]]}
    error = refused(tmp_path, "E-DATA-22", row)
    assert "messages[0].content[1]" in error.message
    assert str(name if name is not None else "null") in error.message


def test_a_text_part_without_text_is_refused(tmp_path):
    row = {"messages": [{"role": "user", "content": [{"type": "text"}]}, answer()["messages"][1]]}
    assert "content[0].text" in refused(tmp_path, "E-DATA-21", row).message


# Text that went through a template already


TEMPLATED = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n",
    "<|user|>\nhi<|end|>\n<|assistant|>\nhello<|end|>\n<|endoftext|>",
    "<s><|user|>\nhi<|end|>\n",
    "<|im_start|>user<|im_sep|>hi<|im_end|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n",
    "<s>[INST] hi [/INST] hello</s>",
    "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhi [/INST] hello",
    "<|user|>\nhi</s>\n<|assistant|>\nhello</s>",
    "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>hello",
    "<|start|>user<|message|>hi<|end|>",
    "Some header\n<|im_start|>user\nhi<|im_end|>",
    "Once upon a time.</s>",
    "Once upon a time.<|endoftext|>\n",
]


@pytest.mark.parametrize("text", TEMPLATED)
def test_templated_text_is_stopped(tmp_path, text):
    assert "messages" in refused(tmp_path, "E-DATA-192", {"text": text}).fix


@pytest.mark.parametrize("text", TEMPLATED[:6])
def test_templated_prompts_are_stopped_too(tmp_path, text):
    refused(tmp_path, "E-DATA-192", {"prompt": text, "completion": "hello"})
    refused(tmp_path, "E-DATA-192", {"instruction": text, "output": "hello"})


def test_text_that_speaks_of_marks_is_fine(tmp_path):
    texts = ["ChatML opens a turn with <|im_start|> and a role.", "a[0] < b[1]", "<s>old</s> price", "The mark [INST] opens."]
    assert [row.text for row in read(tmp_path, *({"text": text} for text in texts))] == texts
    asked = {"prompt": "What does <|end|><|assistant|> do?", "completion": "<|end|> ends a turn."}
    assert len(read(tmp_path, asked, {**asked, "prompt": "<|user|> is what?"})) == 2
    assert len(read(tmp_path, {"messages": [{"role": "user", "content": TEMPLATED[0]}, answer()["messages"][1]]})) == 1


# Roles and order


def test_developer_is_system(tmp_path):
    (row,) = read(tmp_path, {"messages": [{"role": "developer", "content": "Be brief."}, *answer()["messages"]]})
    assert [message.role for message in row.messages] == ["system", "user", "assistant"]
    (row,) = read(
        tmp_path,
        {
            "conversations": [
                {"from": "developer", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
    )
    assert row.messages[0].role == "system"


TWICE = [USER, {"role": "user", "content": "and why?"}, {"role": "assistant", "content": "a"}]


def test_two_turns_of_one_role_are_joined_on_request(tmp_path):
    assert "--merge-turns" in refused(tmp_path, "E-DATA-25", {"messages": TWICE}).fix
    (row,) = read(tmp_path, {"messages": [*TWICE, {"role": "assistant", "content": "b"}]}, merge_turns=True)
    assert row.messages == (Message("user", "q\n\nand why?"), Message("assistant", "a\n\nb"))


def test_joining_loses_nothing(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "a", "arguments": {}}]}
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    said = [USER, {"role": "assistant", "content": "Let me see."}, call, *results, {"role": "assistant", "content": "3"}]
    (row,) = read(tmp_path, {"messages": said}, merge_turns=True)
    assert [message.role for message in row.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert (row.messages[1].content, len(row.messages[1].tool_calls)) == ("Let me see.", 1)
    refused(tmp_path, "E-DATA-25", {"messages": [USER, call, {"role": "assistant", "content": "3"}]}, merge_turns=True)
    marked = [USER, {"role": "assistant", "content": "a", "train": False}, {"role": "assistant", "content": "b"}]
    refused(tmp_path, "E-DATA-194", {"messages": marked}, merge_turns=True)
    named = [{**USER, "name": "Ann"}, {**USER, "name": "Bo"}, answer()["messages"][1]]
    refused(tmp_path, "E-DATA-25", {"messages": named}, merge_turns=True)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own(tmp_path, key):
    row = answer(**{key: "It flows\nnorth."})
    error = refused(tmp_path, "E-DATA-193", row)
    assert f"messages[1].{key}" in error.message
    assert "--reasoning keep" in error.fix
    kept, dropped = (read(tmp_path, row, reasoning=choice)[0] for choice in ("keep", "drop"))
    assert kept.messages[1].content == "<think>\nIt flows\nnorth.\n</think>\n\nElbe"
    assert dropped.messages[1].content == "Elbe"
    assert read(tmp_path, answer(**{key: None}))[0].messages[1].content == "Elbe"


def test_reasoning_elsewhere(tmp_path):
    parts = [{"type": "thinking", "thinking": "north"}, {"type": "text", "text": "Elbe"}]
    rows = [answer(content=parts), {"prompt": "q", "completion": "Elbe", "reasoning": "north"}]
    for row in rows:
        refused(tmp_path, "E-DATA-193", row)
        assert read(tmp_path, row, reasoning="keep")[0].messages[1].content == "<think>\nnorth\n</think>\n\nElbe"
    (row,) = read(
        tmp_path,
        {"Q": "q", "CoT": "north", "A": "Elbe"},
        columns={"question": "Q", "reasoning": "CoT", "answer": "A"},
        reasoning="keep",
    )
    assert row.messages[1].content == "<think>\nnorth\n</think>\n\nElbe"
    refused(tmp_path, "E-DATA-193", answer(reasoning="a", thinking="b"), reasoning="keep")
    refused(tmp_path, "E-DATA-193", {"messages": [{**USER, "thinking": "x"}, answer()["messages"][1]]}, reasoning="keep")
    with pytest.raises(ConfigError, match="E-CFG-190"):
        read(tmp_path, answer(), reasoning="both")


def test_reasoning_looks_as_qwens_template_writes_it(tmp_path):
    """The template's own words for an answer with reasoning_content."""
    from jinja2 import Template

    qwen3 = "{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + message.content.lstrip('\\n') }}"
    message = {"role": "assistant", "content": "\nElbe", "reasoning_content": "\nIt flows north.\n"}
    (row,) = read(tmp_path, {"messages": [USER, message]}, reasoning="keep")
    assert row.messages[1].content == Template(qwen3).render(message=message)


# Files


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_under_data(tmp_path, name, indent):
    if name == "a.jsonl" and indent:
        pytest.skip("a row of JSONL is one line")
    notes = Notes()
    whole = json.dumps({"data": [answer(), answer()], "version": "1.0"}, indent=indent)
    rows = read(tmp_path, whole, name=name, notes=notes)
    assert len(rows) == 2
    assert notes.counts == {f'rows under "data" accepted: {tmp_path / name}': 1, "key ignored beside data: version": 1}
    if indent:
        lines = whole.split("\n")
        assert [lines[int(row.place.rsplit(":", 1)[1]) - 1].strip() for row in rows] == ["{", "{"]
    behind = json.dumps({"version": "1.0", "data": [answer(), answer()]}, indent=indent)
    assert len(read(tmp_path, behind, name=name)) == 2


def test_rows_under_data_stay_strict(tmp_path):
    for text, code in (
        ('{"data": [', "E-DATA-9"),
        (json.dumps({"data": [answer()]})[:-2], "E-DATA-9"),
        ('{"data": [{"messages": [], "messages": []}]}', "E-DATA-12"),
        (json.dumps({"data": [answer()]})[:-1], "E-DATA-9"),
        (json.dumps({"data": [answer()]})[:-1] + ', "data": []}', "E-DATA-100"),
        (json.dumps({"data": [answer()]})[:-1] + "]", "E-DATA-100"),
        (json.dumps({"data": [answer()]}) + " x", "E-DATA-100"),
        ('{"data": []}', "E-DATA-4"),
        ('{"data": ["a", "b"]}', "E-DATA-18"),
    ):
        refused(tmp_path, code, text, name="a.json")
    said = {"data": answer()["messages"]}
    for name in ("a.json", "a.jsonl"):
        (row,) = read(tmp_path, said, name=name, columns={"messages": "data"})
        assert row.messages[1].content == "Elbe"


def test_the_error_names_the_cause(tmp_path):
    assert 'the list under "train"' in refused(tmp_path, "E-DATA-18", {"version": 1, "train": [answer()]}).fix
    whole = json.dumps({"data": [answer()]}, indent=2)
    assert "name the file .json" in refused(tmp_path, "E-DATA-9", whole).fix


def test_rows_under_data_stream(tmp_path):
    import tracemalloc

    path = tmp_path / "a.json"
    line = json.dumps({"prompt": "x" * 100_000, "completion": "y" * 100_000})
    path.write_text('{"data": [' + ",\n".join([line] * 100) + "]}", encoding="utf-8")
    assert path.stat().st_size > MAX_ROW_BYTES
    tracemalloc.start()
    count = sum(1 for _ in read_conversations(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100
    assert peak < 4_000_000


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), (",", None)])
@pytest.mark.parametrize("quoted", [True, False])
def test_csv_with_other_delimiters(tmp_path, delimiter, name, quoted):
    header = ["prompt", "completion"]
    rows = [header, [f'"a, b{delimiter} c"', '"1,5; 2"\n'.strip()]]
    lines = [delimiter.join(f'"{cell}"' if quoted and '"' not in cell else cell for cell in row) for row in rows]
    notes = Notes()
    (row,) = read(tmp_path, *lines, name="a.csv", notes=notes)
    assert [message.content for message in row.messages] == [f"a, b{delimiter} c", "1,5; 2"]
    assert notes.counts == ({f"{name} between fields accepted: {tmp_path / 'a.csv'}": 1} if name else {})
    error = refused(tmp_path, "E-DATA-101", lines[0], delimiter.join("abc"), name="a.csv")
    assert (name or "commas") in error.fix


def test_tsv_and_single_columns(tmp_path):
    assert read(tmp_path, "prompt\tcompletion", "a\tb", name="a.tsv")[0].messages[1].content == "b"
    assert read(tmp_path, "text", '"one; two"', name="a.csv")[0].text == "one; two"


def test_function_call_of_the_older_format(tmp_path):
    said = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": '{"port": "Ribe"}'}},
        {"role": "function", "name": "tide", "content": "low"},
        {"role": "assistant", "content": "Low."},
    ]
    (row,) = read(tmp_path, {"messages": said, "functions": [{"name": "tide", "parameters": {}}]})
    assert row.messages[1] == Message("assistant", "", tool_calls=({"name": "tide", "arguments": {"port": "Ribe"}},))
    assert row.messages[2] == Message("tool", "low", name="tide")
    assert row.tools == ({"name": "tide", "parameters": {}},)
    refused(tmp_path, "E-DATA-114", {"messages": [USER, {"role": "assistant", "function_call": "auto"}]})
    call = {"name": "a", "arguments": {}}
    refused(tmp_path, "E-DATA-108", answer(function_call=call, tool_calls=[call]))
    refused(tmp_path, "E-DATA-108", {"messages": [{**USER, "function_call": call}]})
    refused(tmp_path, "E-DATA-113", {**answer(), "functions": [call], "tools": [call]})


def piped(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_standard_input(monkeypatch, model_dir, capsys):
    from lorakeet.cli.main import run

    piped(monkeypatch, json.dumps(answer()) + "\n" + json.dumps(answer()))
    assert [row.place for row in read_conversations("-")] == ["<stdin>:1", "<stdin>:2"]
    assert len(list(read_conversations("-@2"))) == 4
    assert run(["check", str(model_dir), "-", "--no-calibrate"]) == 0
    assert "<stdin>:1" in capsys.readouterr().out
    piped(monkeypatch, "")
    with pytest.raises(DataError, match="E-DATA-195"):
        list(read_conversations("-"))
    piped(monkeypatch, "{")
    with pytest.raises(DataError, match="E-DATA-9 <stdin>:1"):
        list(read_conversations("-"))


# The commands


def test_commands_take_the_choices(tmp_path, model_dir, capsys):
    from lorakeet.cli.main import run

    path = tmp_path / "a.jsonl"
    said = [USER, USER, {"role": "assistant", "content": "Elbe", "reasoning": "north"}]
    path.write_text(json.dumps({"messages": said}))
    check = ["check", str(model_dir), str(path), "--no-calibrate"]
    assert run(check) == 2
    assert run([*check, "--merge-turns"]) == 2
    assert run([*check, "--merge-turns", "--reasoning", "perhaps"]) == 2
    capsys.readouterr()
    assert run([*check, "--merge-turns", "--reasoning", "keep"]) == 0
    assert "<think>" in capsys.readouterr().out
    assert run([*check, "--set", "data.merge_turns=true", "--set", "data.reasoning=drop"]) == 0
    assert "<think>" not in capsys.readouterr().out


def test_training_and_held_out_rows_honour_the_choices(tmp_path):
    from lorakeet.config import DataConfig, RunConfig
    from lorakeet.data.prepare import read_held_out, read_rows

    said = {"messages": [USER, USER, {"role": "assistant", "content": "Elbe", "reasoning": "north"}]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(said))
    config = RunConfig(model="demo", data=DataConfig(train=[str(path)], merge_turns=True, reasoning="drop"))
    assert [message.content for message in read_rows(config)[0][0].messages] == ["q\n\nq", "Elbe"]
    assert len(read_held_out([str(path)], config)[0].messages) == 2
