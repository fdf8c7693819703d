"""Encoding all rows: in parallel, cached, streamed; splitting; the tokenizer's own files."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lorakeet.data import encode_all as dataset
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import EncodeOptions
from lorakeet.data.encode_all import cache_key, encode_rows
from lorakeet.data.split import find_duplicates, find_overlap, hold_out
from lorakeet.data.templates.known import LAYOUTS
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.errors import DataError, ModelError
from tests.data.conftest import trained, with_template


def rows_of(count: int, start: int = 0) -> list[Conversation]:
    return [
        Conversation((Message("user", f"q {i}"), Message("assistant", f"a {i}")), f"f:{i + 1}")
        for i in range(start, start + count)
    ]


def test_processes_give_the_same_in_order(tiny):
    rows, template = rows_of(1500), template_for(tiny)
    seen = []
    one = encode_rows(rows, tiny, template, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1500, 1500)
    assert len(seen) > 3
    two = encode_rows(rows, tiny, template, num_processes=2)
    assert one == two


def test_a_script_without_guard_is_never_run_again(tmp_path, model_dir):
    """Large data from a plain script: no process may start that would import it."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from pathlib import Path\n"
        "from lorakeet.data import encode_all\n"
        "from lorakeet.data.conversation import Conversation, Message\n"
        "from lorakeet.data.templates.template import template_for\n"
        "from lorakeet.data.tokenizer import load_tokenizer\n"
        "encode_all._PARALLEL_FROM = 10\n"
        f"t = load_tokenizer(Path({str(model_dir)!r}))\n"
        "row = Conversation((Message('user', 'a'), Message('assistant', 'b')))\n"
        "print(len(encode_all.encode_rows([row] * 600, t, template_for(t)).examples))\n"
    )
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["started", "600"]


def test_errors_cross_processes(tiny):
    rows = rows_of(600)
    rows[500] = replace(rows[500], messages=rows[500].messages[:1])
    with pytest.raises(DataError, match="E-DATA-24 f:501"):
        encode_rows(rows, tiny, template_for(tiny), num_processes=2)


def test_cache_gives_back_what_was_put_in(tiny, tmp_path):
    rows = [*rows_of(20), Conversation((Message("user", "q " * 80), Message("assistant", "long " * 9)), "f:99")]
    for truncation in ("drop", "truncate-left"):
        options = EncodeOptions(max_length=40, truncation=truncation)
        first = encode_rows(rows, tiny, template_for(tiny), options, cache_dir=tmp_path)
        second = encode_rows(rows, tiny, template_for(tiny), options, cache_dir=tmp_path)
        assert second.from_cache
        assert replace(second, from_cache=False) == first
        assert (first.num_dropped, first.num_truncated) == ((1, 0) if truncation == "drop" else (0, 1))
    assert len(list(tmp_path.glob("*/rows.safetensors"))) == len(list(tmp_path.iterdir())) == 2


def test_a_byte_changed_anywhere_makes_a_new_key(tiny, monkeypatch, tmp_path):
    rows, template = rows_of(3), template_for(tiny)
    base = (rows, tiny, template, EncodeOptions("all", 100, "error"))
    changed_rows = [*rows[:2], replace(rows[2], messages=(rows[2].messages[0], Message("assistant", "a 3")))]
    marked = [*rows[:2], replace(rows[2], messages=(rows[2].messages[0], replace(rows[2].messages[1], train=False)))]
    spec = json.loads(json.dumps(tiny.spec))
    spec["model"]["vocab"]["zzz"] = 99_999
    flags = json.loads(json.dumps(tiny.spec))
    flags["added_tokens"][0]["lstrip"] = True
    keys = [
        cache_key(*base),
        cache_key(changed_rows, *base[1:]),
        cache_key(marked, *base[1:]),
        cache_key([replace(rows[0], place="f:9"), *rows[1:]], *base[1:]),
        cache_key(rows, with_template(tiny, "phi3-mini", spec=spec), *base[2:]),
        cache_key(rows, with_template(tiny, "phi3-mini", spec=flags), *base[2:]),
        cache_key(rows, with_template(tiny, "phi3-mini", stop_ids=frozenset({1})), *base[2:]),
        cache_key(rows, tiny, LAYOUTS["phi3.5"], *base[3:]),
        cache_key(rows, tiny, template, EncodeOptions("last", 100, "error")),
        cache_key(rows, tiny, template, EncodeOptions("all", 101, "error")),
        cache_key(rows, tiny, template, EncodeOptions("all", 100, "drop")),
    ]
    # The code: a copy of the package's files with one byte more.
    copy = Path(shutil.copytree(Path(dataset.__file__).parent, tmp_path / "data"))
    monkeypatch.setattr(dataset, "__file__", str(copy / "encode_all.py"))
    assert cache_key(*base) == keys[0]
    for name in ("encode.py", "templates/template.py"):
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        keys.append(cache_key(*base))
    assert len(set(keys)) == len(keys) == 13


def test_damaged_cache_is_made_anew(tiny, tmp_path):
    rows, template = rows_of(5), template_for(tiny)
    whole = encode_rows(rows, tiny, template, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*/rows.safetensors")
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-1], *(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :] for i in (3, 99, -9))):
        path.write_bytes(damaged)
        again = encode_rows(rows, tiny, template, cache_dir=tmp_path)
        assert again == whole
        assert not again.from_cache
        assert encode_rows(rows, tiny, template, cache_dir=tmp_path).from_cache


def test_a_cache_that_another_process_deletes_meanwhile_costs_nothing_but_time(tiny, tmp_path, monkeypatch):
    rows, template = rows_of(5), template_for(tiny)
    whole = encode_rows(rows, tiny, template, cache_dir=tmp_path)
    load = dataset._load

    def too_late(path, rows):
        shutil.rmtree(path.parent)
        return load(path, rows)

    monkeypatch.setattr(dataset, "_load", too_late)
    again = encode_rows(rows, tiny, template, cache_dir=tmp_path)
    assert again == whole
    assert not again.from_cache


def test_cache_is_bounded_and_never_in_the_way(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_MOST_CACHED", 2)
    for count in range(1, 6):
        encode_rows(rows_of(count), tiny, template_for(tiny), cache_dir=tmp_path / "rows")
    assert len(list((tmp_path / "rows").iterdir())) == 2
    (tmp_path / "file").write_text("")
    encoded = encode_rows(rows_of(2), tiny, template_for(tiny), cache_dir=tmp_path / "file" / "rows")
    assert len(encoded.examples) == 2


def test_hold_out_keeps_equal_rows_together():
    rows = rows_of(100) + [replace(row, place=f"again:{i}") for i, row in enumerate(rows_of(30))]
    train, held = hold_out(rows, 0.2, seed=1)
    assert len(train) + len(held) == 130
    assert 24 <= len(held) <= 26
    assert find_overlap(train, held).count == 0
    assert (train, held) == hold_out(rows, 0.2, seed=1)
    assert held != hold_out(rows, 0.2, seed=2)[1]
    assert hold_out(rows, 0, seed=1) == (rows, [])
    assert len(hold_out(rows[:3], 0.01, seed=1)[1]) == 1


def test_duplicates_and_overlap_are_counted():
    rows = [*rows_of(4), replace(rows_of(1)[0], place="g:1")]
    assert find_duplicates(rows).to_dict() == {"count": 1, "examples": (("g:1", "f:1"),)}
    assert find_overlap(rows_of(4), rows_of(4, start=2)).examples == (("f:3", "f:3"), ("f:4", "f:4"))


def test_loading_does_not_import_transformers(model_dir):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from lorakeet.data.tokenizer import load_tokenizer\nfrom lorakeet.data.templates.template import template_for\n"
        "from lorakeet.data.encode import encode\nfrom lorakeet.data.conversation import Conversation, Message\n"
        f"t = load_tokenizer(Path({str(model_dir)!r}))\n"
        "encode(Conversation((Message('user', 'a'), Message('assistant', 'b'))), t, template_for(t))\n"
        "assert not {'transformers', 'torch', 'datasets', 'pyarrow'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokenizer_from_a_directory(model_dir, tiny):
    loaded = load_tokenizer(model_dir)
    assert loaded.stop_ids == {tiny.token_id("<|end|>"), tiny.token_id("<|endoftext|>")}
    assert loaded.token_id("<|end|>") in loaded.control_ids
    assert loaded.decode([loaded.token_id("<|end|>"), *loaded.encode_text("hi")], skip_control=True) == "hi"
    copied = pickle.loads(pickle.dumps(loaded))  # how it reaches worker processes
    assert copied.fingerprint == loaded.fingerprint
    assert copied.encode_text("hello <|end|>") == loaded.encode_text("hello <|end|>")
    with pytest.raises(ModelError, match=r'E-MODEL-74.*no token "<.nope.>"'):
        loaded.token_id("<|nope|>")


def test_damaged_tokenizer_files(tmp_path, model_dir):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="E-MODEL-103"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="E-MODEL-103"):
        load_tokenizer(tmp_path)


def test_ordinary_added_tokens_stay_text():
    """Runs of whitespace that some vocabularies add are text; control tokens that are not special are not."""
    base = trained("bpe")
    vocab = {**base.spec["model"]["vocab"], "\u010a\u010a": 5000}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [*base.spec["added_tokens"], {"id": 5000, "content": "\n\n", **flags}, {"id": 5001, "content": "</s>", **flags}]
    spec = {**base.spec, "model": {**base.spec["model"], "vocab": vocab}, "added_tokens": added}
    tokenizer = with_template(base, None, spec=spec)
    assert 5000 not in tokenizer.control_ids
    assert 5001 in tokenizer.control_ids
    assert 5001 not in tokenizer.encode_text("a</s>\n\n")
