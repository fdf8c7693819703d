"""The pieces of a streamed answer add up to the decoded answer, and none of them ends inside a character."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.infer.text_stream import REPLACEMENT, TextStream

TEXTS = ["", "Hello there", "  two  spaces ", "ça va? привет 你好", "👩‍👩‍👧 family 🇩🇪", "a\n\nb\t", "é" * 5, "\ufffd odd"]


def byte_level():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*alphabet, "he", "Ġt"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[("h", "e"), ("Ġ", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return finish(backend)


def sentencepiece_like():
    """The scheme of Phi-3's tokenizer: ▁ for spaces, one in front, bytes where the vocabulary has no piece."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"aehlorstv", "he", "▁t", "▁▁"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("h", "e"), ("▁", "t"), ("▁", "▁")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finish(backend)


def finish(backend):
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(json.loads(backend.to_str()), eos_token="<|end|>")


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece_like()}


def stream(tokenizer, ids):
    text = TextStream(tokenizer)
    return [*(text.push(token) for token in ids), text.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_hold_whole_characters(name, text):
    tokenizer = TOKENIZERS[name]
    pieces = stream(tokenizer, tokenizer.encode_text(text))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode_text(text)) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_of_any_text_add_up(name, data):
    tokenizer = TOKENIZERS[name]
    text = data.draw(st.text(st.characters(codec="utf-8"), max_size=20))
    assert "".join(stream(tokenizer, tokenizer.encode_text(text))) == text


def test_text_comes_as_soon_as_it_is_certain():
    tokenizer = TOKENIZERS["byte-level"]
    pieces = stream(tokenizer, tokenizer.encode_text("he é!"))
    assert pieces == ["he", " ", "", "é", "!", ""]


def test_bytes_that_stay_incomplete_are_told_at_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode_text("a👩")[:-1]
    assert stream(tokenizer, ids)[-1] == REPLACEMENT
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_control_tokens_leave_no_text():
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode_text("he he")
    end = tokenizer.token_id("<|end|>")
    assert "".join(stream(tokenizer, [ids[0], end, *ids[1:], end])) == "he he"
