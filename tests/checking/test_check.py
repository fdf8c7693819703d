"""The check report: figures counted apart, looks with and without colour, the command, and the real data."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from lorakeet import api
from lorakeet.checking.check import CheckResult, check_rows, model_limit
from lorakeet.checking.languages import count_scripts, guess_language
from lorakeet.checking.report import CheckReport, Shown, Survey, measure, suggest_max_length
from lorakeet.checking.show import example_text, report_lines, stretches
from lorakeet.cli.main import run
from lorakeet.config import RunConfig
from lorakeet.data import prepare
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode_many
from lorakeet.data.prepare import prepare_data
from lorakeet.data.read import read_conversations
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.errors import ConfigError, DataError, ModelError
from lorakeet.notebook import SUPERVISED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))


def check(model_dir, path, *, max_length=None, row=None, num_examples=3, **data) -> CheckResult:
    """Check a file as the command does, without the prediction."""
    config = RunConfig(model=str(model_dir), data={"train": str(path), **data}, training_config={"max_length": max_length})
    return check_rows(config, row=row, num_examples=num_examples)[0]


def survey_of(path, tokenizer) -> tuple[CheckReport, Survey]:
    """Report on a file with a tokenizer that has no model directory."""
    survey, template = Survey(), template_for(tokenizer)
    data = prepare_data(RunConfig(model="none", data=str(path)), tokenizer, template, None, visit=survey.add)
    return survey.report(data.findings, template=template.name, learn="all"), survey


def write(path, rows):
    path.write_text("\n".join(json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows))
    return path


ROWS = [("hello", "hi there"), ("what is 12 + 30?", "it is 42"), ("hello", "hi there"), ("say <|end|>", "no " * 30)]


def test_figures_match_a_count_apart(tmp_path, model_dir, tiny):
    path = write(tmp_path / "a.jsonl", ROWS)
    report = check(model_dir, path).report
    # Frame of one row: <|user|> … <|end|> <|assistant|> … <|end|> <|endoftext|>; the newlines are swallowed.
    lengths = [5 + len(tiny.encode_text(prompt)) + len(tiny.encode_text(answer)) for prompt, answer in ROWS]
    learned = [1 + len(tiny.encode_text(answer)) for _, answer in ROWS]
    assert report.num_tokens == sum(lengths)
    assert report.num_supervised_tokens == sum(learned)
    assert (report.num_rows, report.num_usable, report.num_dropped) == (4, 4, 0)
    assert report.lengths is not None
    assert (report.lengths.shortest, report.lengths.longest) == (min(lengths), max(lengths))
    assert report.longest_rows[0] == (f"{path}:4", max(lengths))
    assert report.shortest_rows[0] == (f"{path}:1", min(lengths))
    assert (report.duplicates.count, report.duplicates.examples) == (1, ((f"{path}:3", f"{path}:1"),))
    assert report.formats == {str(path): "prompt-completion"}
    assert (report.control_text_rows, report.control_text_place) == (1, f"{path}:4")
    needed = [length - 1 for length in lengths]  # the eos after the last answer need not fit
    for cost in report.truncation_cost:
        assert cost["rows"] == sum(n > cost["max_length"] for n in needed)
        assert cost["tokens"] == sum(max(0, n - cost["max_length"]) for n in needed)
    json.dumps(report.to_dict())


def test_little_is_kept_of_a_row(tiny):
    """Some twenty bytes."""
    import tracemalloc

    row = Conversation((Message("user", "question"), Message("assistant", "hello world " * 40)), "f:1")
    example = encode_many([row], tiny, template_for(tiny))[0]

    def peak(count):
        survey = Survey()
        tracemalloc.start()
        for i in range(count):
            survey.add(replace(row, place=f"f:{i + 1}"), [replace(example, input_ids=list(example.input_ids))])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert survey.num_rows == count
        return most

    few, many = peak(500), peak(2_500)
    assert many - few < 2_000 * 60


def test_measure_by_hand():
    lengths = measure([10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    assert (lengths.shortest, lengths.median, lengths.mean, lengths.p95, lengths.longest) == (10, 50, 55.0, 100, 100)
    assert sum(count for _, _, count in lengths.histogram) == 10
    assert lengths.histogram[0] == (10, 17, 1)
    assert measure([7]).histogram == [(7, 7, 1)]


def test_suggestion_ignores_a_few_giants():
    assert suggest_max_length([100] * 999 + [120]) == 128
    assert suggest_max_length([100] * 999 + [5000]) == 128
    assert suggest_max_length([64]) == 64


def test_languages_and_scripts():
    known = {
        "The house is on the hill and it is old.": "English",
        "Das Haus ist nicht auf dem Berg und ich bin alt.": "German",
        "Привет, как дела?": "Cyrillic",
        "你好世界": "Han",
        "1 + 1 = 2": "unknown",
    }
    for text, name in known.items():
        assert guess_language(text, count_scripts(text)) == name
    assert count_scripts("ab яю 你") == Counter({"Latin": 2, "Cyrillic": 2, "Han": 1})


def test_looks_tell_all_four_kinds_apart(tiny):
    row = Conversation((Message("user", "a\x1b[31m"), Message("assistant", "b")), "f:1")
    shown = Shown(row, encode_many([row], tiny, template_for(tiny))[0])
    assert [look for look, _ in stretches(shown.example, tiny)] == [
        "control",
        "context",
        "control",
        "control",
        "supervised",
        "supervised-control",
        "control",
    ]
    plain = example_text(shown, tiny, colour=False)
    assert plain.plain == "{<|user|>}a\\x1b[31m{<|end|>}{<|assistant|>}«b»«{<|end|>}»{<|endoftext|>}"
    assert plain.spans == []
    coloured = example_text(shown, tiny, colour=True)
    assert coloured.plain == "<|user|>a\\x1b[31m<|end|><|assistant|>b<|end|><|endoftext|>"
    assert len({span.style for span in coloured.spans}) == 4


def test_a_notebook_shows_text_alone(tmp_path, model_dir):
    hostile = "<script>alert(1)</script><img src=http://x>"
    in_notebook = check(model_dir, write(tmp_path / "a.jsonl", [(hostile, hostile)]))._repr_html_()
    assert "&lt;script&gt;" in in_notebook
    assert "<script" not in in_notebook
    assert SUPERVISED in in_notebook


def test_rows_to_show(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert len(check(model_dir, path, num_examples=2).shown) == 2
    for name in ("2", "a.jsonl:2", f"{path}:2"):
        (shown,) = check(model_dir, path, row=name).shown
        assert shown.conversation.messages[0].content == "what is 12 + 30?"
    with pytest.raises(DataError, match="E-DATA-118"):
        check(model_dir, path, row="99")


def test_options_reach_the_rows(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", ROWS[:1])
    (shown,) = check(model_dir, path, system="Be nice.").shown
    assert shown.conversation.messages[0] == Message("system", "Be nice.")
    text = check(model_dir, path, learn="text").report
    assert text.num_supervised_tokens == text.num_tokens - 1
    with pytest.raises(ConfigError, match="truncation"):
        check(model_dir, path, truncation="maybe")


def test_the_models_limit_is_read_from_its_configuration(model_dir):
    assert model_limit(model_dir) == 512


@pytest.mark.parametrize("more", [[], ["--no-calibrate"]])
@pytest.mark.parametrize(("weights", "model_type", "code"), [("pytorch_model.bin", "phi3", 63), (None, "mixtral", 72)])
def test_a_model_that_cannot_train_ends_with_2(tmp_path, model_dir, capsys, weights, model_type, code, more):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    if weights:
        (model / weights).write_bytes(b"\x80\x02")
    assert run(["check", str(model), str(write(tmp_path / "a.jsonl", ROWS)), *more]) == 2
    out, err = capsys.readouterr()
    assert (out, err.split()[0]) == ("", f"E-MODEL-{code}")


def test_command_prints_and_writes_json(tmp_path, model_dir, capsys):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert run(["check", str(model_dir), str(path), "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "{<|user|>}hello{<|end|>}{<|assistant|>}«hi there»«{<|end|>}»{<|endoftext|>}" in printed
    assert "4 of 4 rows usable, every one proven; template phi3-mini" in printed
    assert run(["check", str(model_dir), str(path), "--json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["num_rows"] == 4
    assert json.loads(last)["cost"] is None  # a model without weights; the rest of the check counts


def test_gsm8k_figures(data_dir, smollm2, phi3):
    """Counted apart: the answers through the bare tokenizer, the frame by hand."""
    path = data_dir / "gsm8k_train.jsonl"
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(raw) == 7473
    # Around question and answer, SmolLM2's template writes <|im_start|>, the system turn, <|im_end|>, a newline; then
    # <|im_start|> … <|im_end|>, a newline; <|im_start|>, the opener; and after the answer <|im_end|> and a newline.
    # Phi-3's writes four control tokens and the end of text, and its newlines are swallowed.
    system = len(smollm2.encode_text("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"))
    opener = len(smollm2.encode_text("assistant\n"))
    frames = {"smollm2": (1 + system + 2) + 1 + 2 + (1 + opener) + 2, "phi3": 5}
    for name, tokenizer, place, header in (("smollm2", smollm2, "continuation", "user\n"), ("phi3", phi3, "middle", "")):
        report, _ = survey_of(path, tokenizer)
        answers = sum(len(ids) for ids in tokenizer.encode_texts([row["answer"] for row in raw], place=place))
        asked = tokenizer.encode_texts([header + row["question"] for row in raw], place="middle")
        assert report.num_supervised_tokens == answers + 7473
        assert report.num_tokens == answers + sum(map(len, asked)) + frames[name] * 7473
        assert (report.num_rows, report.num_usable, report.duplicates.count) == (7473, 7473, 0)
        assert report.languages["English"] > 7000
        assert report.control_text_rows == 0
        assert report.lengths is not None
        assert sum(count for _, _, count in report.lengths.histogram) == 7473
    # The first answer, token by token: "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n…\n#### 72" and its end.
    first = encode_many([next(iter(read_conversations(path)))], phi3, template_for(phi3))[0]
    ((start, end),) = first.spans
    assert phi3.decode(first.input_ids[start:end]) == raw[0]["answer"] + "<|end|>"
    assert first.input_ids[start - 1] == 32001


def test_alpaca_figures(data_dir, phi3):
    path = data_dir / "alpaca_en_demo.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert len(raw) == 999
    report, _ = survey_of(path, phi3)
    said = Counter((row["instruction"], row["input"], row["output"]) for row in raw)
    assert report.duplicates.count == sum(count - 1 for count in said.values())
    prompts = ["\n".join(part for part in (row["instruction"], row["input"]) if part) for row in raw]
    lengths = [
        5 + len(question) + len(answer)
        for question, answer in zip(
            phi3.encode_texts(prompts, place="middle"),
            phi3.encode_texts([row["output"] for row in raw], place="middle"),
            strict=True,
        )
    ]
    assert report.num_tokens == sum(lengths)
    assert report.lengths is not None
    assert report.lengths.longest == max(lengths)
    longest = raw[lengths.index(max(lengths))]
    line = int(report.longest_rows[0][0].rsplit(":", 1)[1])
    text = path.read_text(encoding="utf-8").splitlines()[line : line + 4]
    assert json.dumps(longest["instruction"], ensure_ascii=False) in "\n".join(text)


def test_report_names_what_truncation_did(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", ROWS)
    report = check(model_dir, path, max_length=20, truncation="drop").report
    assert report.num_dropped >= 1
    assert any(f"{report.num_dropped} dropped" in line for line in report_lines(report))


def test_check_refuses_what_train_refuses(tmp_path, model_dir):
    path = write(tmp_path / "a.jsonl", ROWS)
    config = {"training_config": {"max_length": 1_000_000, "output_dir": str(tmp_path / "run")}}
    with pytest.raises(ConfigError, match="E-CFG-44"):
        api.check(str(model_dir), str(path), calibrate=False, **config)


def test_rows_are_read_once_whether_held_out_or_not(tmp_path, model_dir, monkeypatch):
    """Rows that training will hold out are rows of the file: read once, counted once, in the order of the file."""
    path = write(tmp_path / "a.jsonl", [(f"question {i}", f"answer {i}") for i in range(60)])
    read = []

    def reading(source, **options):
        read.append(source)
        return read_conversations(source, **options)

    monkeypatch.setattr(prepare, "read_conversations", reading)
    result, data = check_rows(RunConfig(model=str(model_dir), data=str(path)))
    assert read == [str(path)]
    assert (len(data.train.examples), len(data.held_out)) == (57, 3)
    assert (result.report.num_rows, result.report.num_usable) == (60, 60)
    assert [shown.conversation.place for shown in result.shown] == [f"{path}:{line}" for line in (1, 2, 3)]


def test_training_says_what_check_notes(tmp_path, model_dir, tiny):
    rows = [ROWS[0]] * 2 + [ROWS[3]]
    path = write(tmp_path / "a.jsonl", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = {"train": str(path), "truncation": "drop"}
    config = RunConfig(model=str(model_dir), data=data, training_config={"max_length": 20})
    said = prepare_data(config, tiny, template_for(tiny), 512).findings.lines()
    assert said == [
        f"format prompt-completion: {path}",
        f"note: byte-order mark accepted: {path} (1)",
        "truncation: 0 rows shortened, 1 dropped",
        f"duplicates: 1; {path}:2 repeats {path}:1",
        f"control tokens in content: 1 row, kept as text, first at {path}:3",
    ]
    printed = report_lines(check_rows(config)[0].report)
    assert [line for line in printed if line in said] == said


def test_a_token_that_the_model_has_no_embedding_of_is_refused(tmp_path, model_dir):
    """A tokenizer of another model would end training in the middle, at the first such row."""
    shutil.copytree(model_dir, other := tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    tokenizer = load_tokenizer(other)
    settings = RunConfig(model=str(other), data=str(write(tmp_path / "a.jsonl", ROWS[:2])))
    with pytest.raises(ModelError, match=r"E-MODEL-123 .*other token \d+, '.*', has no embedding: the model has 100, the row"):
        prepare_data(settings, tokenizer, template_for(tokenizer), 512)
