"""Silent bugs 3 to 10, 12, 14 and 30, brought back by a patch at run time: each is caught by name.

Every test first shows that the unpatched code passes, then that a named check stops the patched one.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from lorakeet.data import encode, formats, pack, prove
from lorakeet.data import encode_all as dataset
from lorakeet.data.conversation import Conversation, Example, Message
from lorakeet.data.encode import EncodeOptions
from lorakeet.data.encode_all import encode_rows
from lorakeet.data.templates import template
from lorakeet.data.templates.template import template_for
from lorakeet.errors import DataError
from tests.data.conftest import with_template

ROWS = [
    Conversation(
        (
            Message("user", "What is\n12 + 30?"),
            Message("assistant", "it is 42"),
            Message("user", "ok <|assistant|> really?"),
            Message("assistant", "<|assistant|> yes"),
        ),
        "train.jsonl:7",
    )
]


def run(tokenizer, rows=ROWS, cache_dir=None, **options):
    return encode_rows(rows, tokenizer, template_for(tokenizer), EncodeOptions(**options), cache_dir=cache_dir)


def caught(tokenizer, code: str, **options) -> DataError:
    with pytest.raises(DataError) as error:
        run(tokenizer, **options)
    assert error.value.code == code, error.value
    assert error.value.place.startswith("train.jsonl:7")
    return error.value


@pytest.fixture(autouse=True)
def _passes_unpatched(tiny):
    assert run(tiny).num_supervised_tokens > 0


def patch_example(monkeypatch, change) -> None:
    """Change every training example as it leaves the encoder."""
    original = encode._example

    def changed(segments, conversation, learn, is_prompt):
        example = original(segments, conversation, learn, is_prompt)
        return example if is_prompt else change(example)

    monkeypatch.setattr(encode, "_example", changed)


def test_3_pad_equals_eos_masks_the_end(tiny, monkeypatch):
    """pad == eos: masking by token id takes the end tokens out of the labels."""

    def mask_by_id(example: Example) -> Example:
        end = tiny.token_id("<|end|>")
        spans = tuple((a, b - 1) if example.input_ids[b - 1] == end else (a, b) for a, b in example.spans)
        return replace(example, spans=spans)

    patch_example(monkeypatch, mask_by_id)
    assert "end token" in str(caught(tiny, "E-DATA-131"))


def test_4_end_of_turn_is_no_stop_token(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "stop_ids", frozenset({tiny.eos_id}))
    assert "stop ids" in str(caught(tiny, "E-DATA-132"))


def test_5_zero_mask(tiny, monkeypatch):
    patch_example(monkeypatch, lambda example: replace(example, spans=()))
    caught(tiny, "E-DATA-24")


def test_6_response_marker_search(tiny, monkeypatch):
    """Finding the answer by its header's text goes wrong where content holds that text."""

    def search(example: Example) -> Example:
        text = tiny.decode(example.input_ids)
        at = len(tiny.encode_text(text[: text.rindex("<|assistant|>")]))
        return replace(example, spans=((min(at, len(example.input_ids) - 1), len(example.input_ids)),))

    patch_example(monkeypatch, search)
    caught(tiny, "E-DATA-135")


def test_7_header_is_trained(tiny, monkeypatch):
    patch_example(monkeypatch, lambda e: replace(e, spans=tuple((a - 1, b) for a, b in e.spans)))
    caught(tiny, "E-DATA-135")


def test_7_wrong_turn_is_trained(tiny, monkeypatch):
    patch_example(monkeypatch, lambda e: replace(e, spans=((1, e.spans[0][0] - 1), *e.spans)))
    caught(tiny, "E-DATA-135")


def test_7_a_turn_is_forgotten(tiny, monkeypatch):
    patch_example(monkeypatch, lambda e: replace(e, spans=e.spans[1:]))
    caught(tiny, "E-DATA-135")


@pytest.mark.parametrize("role", ["human", "tool", "User"])
def test_8_unknown_role_vanishes(tiny, monkeypatch, role):
    """Both guards: the reader refuses the role, and so does the template where the reader is bypassed."""
    row = {"messages": [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match=r"E-DATA-2[05]"):
        formats.RowReader("messages").read(row, "train.jsonl:7")
    monkeypatch.setattr(formats.RowReader, "role", lambda self, value, *rest: value)
    monkeypatch.setattr(formats, "check_messages", lambda conversation: None)
    smuggled = formats.RowReader("messages").read(row, "train.jsonl:7")
    caught(tiny, "E-DATA-120", rows=[smuggled])


def test_9_double_bos(phi3_bare, monkeypatch):
    original = template.Layout.render

    def with_another_bos(self, conversation, *, add_generation_prompt=False):
        pieces = original(self, conversation, add_generation_prompt=add_generation_prompt)
        return [pieces[0], *pieces]

    run(phi3_bare)
    monkeypatch.setattr(template.Layout, "render", with_another_bos)
    caught(phi3_bare, "E-DATA-133")


def test_9_serving_differs_from_training(tiny, monkeypatch):
    """A header that only inference writes another way."""
    original = template.Layout.render

    def other_when_asked(self, conversation, *, add_generation_prompt=False):
        pieces = original(self, conversation, add_generation_prompt=add_generation_prompt)
        return [*pieces, template.Piece("  ->", "context")] if add_generation_prompt else pieces

    monkeypatch.setattr(template.Layout, "render", other_when_asked)
    assert "what inference would send" in str(caught(tiny, "E-DATA-130"))


def test_10_whitespace_after_control_tokens(phi3, monkeypatch):
    """Another revision of the tokenizer keeps the newline: its fingerprint tells, and so do the golden ids."""
    spec = {**phi3.spec, "added_tokens": [{**token, "rstrip": False} for token in phi3.spec["added_tokens"]]}
    other = with_template(phi3, "phi3-mini", spec=spec)
    assert other.fingerprint != phi3.fingerprint
    row = [Conversation((Message("user", "Hello"), Message("assistant", "Fine.")), "f:1")]
    golden = [32010, 15043, 32007, 32001, 28896, 29889, 32007, 32000]
    assert run(phi3, rows=row).examples[0].input_ids == golden
    assert run(other, rows=row).examples[0].input_ids != golden


def test_10_newline_swallowed_in_training_only(phi3, monkeypatch):
    original = encode._segments

    def forgets_rstrip(pieces, tokenizer, place):
        segments = original(pieces, tokenizer, place)
        is_training = any(segment.turn >= 0 for segment in segments[-3:])
        newline = encode._Segment(None, "\n", "middle")
        return [segments[0], newline, *segments[1:]] if is_training else segments

    monkeypatch.setattr(encode, "_segments", forgets_rstrip)
    caught(phi3, "E-DATA-130")


def test_12_positions_ignored(tiny, monkeypatch):
    """Positions that run on over the borders differ from those of the documents alone."""

    def check(batch):
        borders = batch.cu_seqlens.tolist()
        alone = [torch.arange(b - a) for a, b in itertools.pairwise(borders)]
        assert torch.equal(batch.position_ids_T, torch.cat(alone)), "positions do not restart"

    examples = run(tiny).examples * 3
    check(pack.pack(examples))
    original = pack.PackedBatch
    monkeypatch.setattr(
        pack, "PackedBatch", lambda **k: original(**{**k, "position_ids_T": torch.arange(len(k["input_ids_T"]))})
    )
    with pytest.raises(AssertionError, match="positions do not restart"):
        check(pack.pack(examples))


def test_14_truncation_removes_the_answer(tiny, monkeypatch):
    whole = run(tiny).examples[0]
    limit = whole.spans[-1][1] - 2
    caught(tiny, "E-DATA-27", max_length=limit)

    def cut_right(example, max_length, truncation, *, bos_id):
        spans = tuple((a, min(b, max_length)) for a, b in example.spans if a < max_length)
        return replace(example, input_ids=example.input_ids[:max_length], spans=spans)

    monkeypatch.setattr(dataset, "fit_length", cut_right)
    assert "cut off" in str(caught(tiny, "E-DATA-134", max_length=limit))


def test_30_stale_cache(tiny, monkeypatch, tmp_path):
    """A key that forgets the data serves old rows; the true key changes with every part."""
    changed = [replace(ROWS[0], messages=(*ROWS[0].messages[:-1], Message("assistant", "yes!")))]
    first = run(tiny, cache_dir=tmp_path)
    assert run(tiny, cache_dir=tmp_path).from_cache
    assert not run(tiny, rows=changed, cache_dir=tmp_path).from_cache
    key = dataset.cache_key
    monkeypatch.setattr(dataset, "cache_key", lambda rows, *rest: key(ROWS, *rest))
    stale = run(tiny, rows=changed, cache_dir=tmp_path)
    assert stale.from_cache
    assert stale.examples == first.examples
    with pytest.raises(DataError, match="E-DATA-131"):
        prove.prove_many(changed, stale.examples, tiny, template_for(tiny))
