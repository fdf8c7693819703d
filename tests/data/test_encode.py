"""Encoding: control tokens in content, whitespace after control tokens, what is learned, truncation."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakeet.data.conversation import Conversation, Example, Message, with_system_prompt
from lorakeet.data.encode import encode, encode_many, fit_length
from lorakeet.data.prove import prove
from lorakeet.data.templates.known import LAYOUTS
from lorakeet.data.templates.template import template_for
from lorakeet.errors import ConfigError, DataError
from tests.data.conftest import CHATML_CONTROL, PHI3_CONTROL, trained


def chat(*contents, place="", **last) -> Conversation:
    roles = ["user", "assistant"]
    messages = [Message(roles[i % 2], content) for i, content in enumerate(contents)]
    return Conversation((*messages[:-1], replace(messages[-1], **last)), place)


def spans_text(example, tokenizer):
    return tokenizer.decode_inside([example.input_ids[a:b] for a, b in example.spans])


def test_golden_ids_of_the_real_phi3(phi3):
    """The newline after a control token is swallowed, and the answer follows with its own prefix space."""
    example = encode(chat("Hello", "Fine."), phi3, template_for(phi3))
    assert example.input_ids == [32010, 15043, 32007, 32001, 28896, 29889, 32007, 32000]
    assert example.spans == ((4, 7),)


def test_golden_ids_of_smollm2(smollm2):
    example = encode(chat("Hi", "Hello"), smollm2, template_for(smollm2))
    assert smollm2.decode(example.input_ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    ((start, end),) = example.spans
    assert example.input_ids[start:end] == [19556, 2]


def test_phi3_vocabulary_matches_llama_cpp(phi3_bare, data_dir):
    """The 47 golden texts that come with the vocabulary."""
    folder = data_dir / "phi3-tokenizer"
    texts = (folder / "ggml-vocab-phi-3.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / "ggml-vocab-phi-3.gguf.out").read_text().splitlines()
    compared = 0
    for text, line in zip(texts, lines, strict=False):
        assert phi3_bare.encode_text(text) == [int(i) for i in line.split()], text
        compared += 1
    assert compared >= 46


@pytest.mark.parametrize("text", ["<|end|><|assistant|>", "a<|im_end|>", " <|end|> ", "<s></s>", "<unk>", "<|user|>\nx"])
def test_control_tokens_in_content_stay_text(tokenizer, text):
    template = template_for(tokenizer)
    plain = encode(chat("question", "answer"), tokenizer, template)
    hostile = encode(chat(text, text), tokenizer, template)

    def num_control(example):
        return sum(i in tokenizer.control_ids for i in example.input_ids)

    unknown = tokenizer.full.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    assert num_control(hostile) == num_control(plain) + sum(i == unknown for i in hostile.input_ids)
    if unknown is None or unknown not in hostile.input_ids:
        assert spans_text(hostile, tokenizer)[0].startswith(text) or tokenizer.prepends_space
        prove(chat(text, text), hostile, tokenizer, template)


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(st.text(max_size=30).filter(lambda t: t.strip()), min_size=2, max_size=6), data=st.data())
def test_any_content_is_proven(contents, data):
    """Hostile text of every kind: the proof holds, and no control token comes from content."""
    tokenizer = trained(data.draw(st.sampled_from(["bpe", "bpe-rstrip", "bpe-lstrip-rstrip", "bpe-chatml"])))
    pieces = st.sampled_from([*PHI3_CONTROL, *CHATML_CONTROL, " ", "\n", "\u00a0", "\x1c", "\u2003"])
    contents = [c + data.draw(pieces) + data.draw(pieces) for c in contents[: len(contents) // 2 * 2]]
    contents = [data.draw(pieces) + c for c in contents]
    template = template_for(tokenizer)
    row = chat(*contents)
    example = encode(row, tokenizer, template)
    prove(row, example, tokenizer, template)
    reference = encode(chat(*["a"] * len(contents)), tokenizer, template)
    count = [sum(i in tokenizer.control_ids for i in one.input_ids) for one in (example, reference)]
    assert count[0] == count[1]


def test_prompt_is_an_exact_prefix(tokenizer):
    """Answers that begin or end with whitespace keep it, and do not reach into the prompt."""
    template = template_for(tokenizer)
    for answer in ("  two spaces", "\n\nnewlines", "tail \n", "\ttab"):
        row = chat("q", answer, "q2", answer)
        example = encode(row, tokenizer, template)
        for turn, (start, _) in zip((1, 3), example.spans, strict=True):
            prompt = replace(row, messages=row.messages[:turn])
            sent = encode(prompt, tokenizer, template, add_generation_prompt=True)
            assert sent.input_ids == example.input_ids[:start]
            assert sent.spans == ()


def test_many_equal_one_by_one(tiny):
    template = template_for(tiny)
    rows = [chat("a", "b"), chat("hello there", "x", "y", "z"), chat("a", "c")]
    assert encode_many(rows, tiny, template) == [encode(row, tiny, template) for row in rows]


def test_learn_options(tiny):
    template = template_for(tiny)
    row = chat("a", "first", "b", "second")
    texts = {learn: spans_text(encode(row, tiny, template, learn=learn), tiny) for learn in ("all", "last")}
    assert texts == {"all": ["first<|end|>", "second<|end|>"], "last": ["second<|end|>"]}
    whole = encode(row, tiny, template, learn="text")
    assert whole.spans == ((1, len(whole.input_ids)),)


def test_marks_of_the_row_win(tiny):
    template = template_for(tiny)
    row = chat("a", "first", "b", "second")
    marked = replace(row, messages=tuple(replace(m, train=m.content == "first") for m in row.messages))
    for learn in ("all", "last", "marked"):
        assert spans_text(encode(marked, tiny, template, learn=learn), tiny) == ["first<|end|>"]
    with pytest.raises(DataError, match="E-DATA-24"):
        encode(row, tiny, template, learn="marked")
    with pytest.raises(ConfigError, match="learn"):
        encode(row, tiny, template, learn="everything")


def test_plain_text_is_learned_whole(tiny):
    example = encode(Conversation((), text="hello <|end|> world"), tiny, template_for(tiny))
    assert example.spans == ((1, len(example.input_ids)),)
    assert example.input_ids[-1] == tiny.eos_id
    assert sum(i in tiny.control_ids for i in example.input_ids) == 1


def test_plain_text_is_proven_and_may_be_cut(tokenizer):
    template = template_for(tokenizer)
    row = Conversation((), "f:1", text="hello the fox <|end|> asks: what is 12 + 30?")
    example = encode(row, tokenizer, template)
    prove(row, example, tokenizer, template)
    with pytest.raises(DataError, match="E-DATA-131"):
        prove(replace(row, text="hello the fix"), example, tokenizer, template)
    with pytest.raises(DataError, match="E-DATA-135"):
        prove(row, replace(example, spans=((2, len(example.input_ids)),)), tokenizer, template)
    size = len(example.input_ids)
    cut = encode(row, tokenizer, template, max_length=size - 3, truncation="truncate-left")
    assert cut.spans == ((1, size - 3),)
    assert cut.input_ids[-5:] == example.input_ids[-5:]
    prove(row, cut, tokenizer, template)


def test_every_role_and_tools_are_kept(tiny):
    """What the model is told and what it calls is text of the row, in order."""
    call = {"name": "add", "arguments": {"a": 1, "b": "zwei"}}
    row = Conversation(
        (
            Message("user", "add"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "3"),
            Message("assistant", "It is 3."),
        ),
        tools=({"name": "add"},),
    )
    tokenizer = trained("bpe-chatml")
    template = template_for(tokenizer)
    example = encode(row, tokenizer, template)
    prove(row, example, tokenizer, template)
    assert tokenizer.decode(example.input_ids) == (
        '<|im_start|>system\n[{"name": "add"}]<|im_end|>\n<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\n'
        '[{"name": "add", "arguments": {"a": 1, "b": "zwei"}}]<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n'
        "<|im_start|>assistant\nIt is 3.<|im_end|>\n"
    )
    with pytest.raises(DataError, match='E-DATA-120 messages\\[2\\] the template phi3-mini drops messages of role "tool"'):
        encode(replace(row, tools=()), tiny, template_for(tiny))


def test_old_templates_refuse_what_they_would_drop(phi3_bare):
    template = template_for(phi3_bare)
    assert template.name == "phi3-mini-2024-04"
    row = with_system_prompt(chat("a", "b", place="f:3"), "Be nice")
    with pytest.raises(DataError, match=r"E-DATA-120 f:3 messages\[0\]"):
        encode(row, phi3_bare, template)


def test_system_prompt_added_or_replaced():
    row = chat("a", "b")
    added = with_system_prompt(row, "S")
    assert [m.role for m in added.messages] == ["system", "user", "assistant"]
    assert with_system_prompt(added, "T") == added
    assert with_system_prompt(added, "T", replace_existing=True).messages[0].content == "T"


def test_truncation_policies(tiny):
    template = template_for(tiny)
    row = chat("question " * 20, "answer", "next " * 20, "good answer", place="f.jsonl:9")
    whole = encode(row, tiny, template)
    size = len(whole.input_ids)
    with pytest.raises(DataError, match=r"E-DATA-27 f.jsonl:9 .*the prompt has \d+ of 60 tokens"):
        encode(row, tiny, template, max_length=60)
    assert fit_length(whole, 60, "drop", bos_id=None) is None
    # Context after the last answer may go: nothing is learned from it.
    last = whole.spans[-1][1]
    assert encode(row, tiny, template, max_length=last).spans == whole.spans
    left = encode(row, tiny, template, max_length=40, truncation="truncate-left")
    assert len(left.input_ids) == 40
    assert left.input_ids == whole.input_ids[last - 40 : last]
    assert spans_text(left, tiny) == ["good answer<|end|>"]
    assert left.num_cut == last - 40
    prove(row, left, tiny, template)
    assert encode(row, tiny, template, max_length=size) == whole


def test_truncate_left_drops_rows_whose_answer_cannot_stay_whole():
    example = Example(list(range(1, 21)), ((5, 20),), "f:1")
    assert fit_length(example, 15, "truncate-left", bos_id=None) is None
    kept = fit_length(example, 17, "truncate-left", bos_id=1)
    assert kept is not None
    assert kept.input_ids == [1, *range(5, 21)]
    assert kept.spans == ((2, 17),)


def test_every_layout_has_its_end_token_learned():
    """Silent bug 4's rule, on every layout the vocabulary of which is at hand."""
    compared = 0
    for name, layout in LAYOUTS.items():
        tokenizer = trained("bpe-chatml") if layout.open else trained("bpe")
        if layout.bos:
            tokenizer = trained("bpe")
        template = template_for(tokenizer, name=name)
        example = encode(chat("a", "b", "c", "d"), tokenizer, template)
        prove(chat("a", "b", "c", "d"), example, tokenizer, template)
        end = tokenizer.token_id(layout.end)
        assert [example.input_ids[stop - 1] for _, stop in example.spans] == [end, end], name
        compared += 1
    assert compared == len(LAYOUTS) == 10
