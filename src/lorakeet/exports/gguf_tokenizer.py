"""A tokenizer as GGUF metadata: so that llama.cpp makes the very ids of training, and stops where training stopped.

data in: a Tokenizer, its template's text → out: `tokenizer.ggml.*` keys. SentencePiece-like BPE (Phi-3, Llama 2, Gemma) and
byte-level BPE are known; anything else is refused. Facts of llama.cpp's src/llama-vocab.cpp:

- White space behind control tokens is stripped only if the model's name contains phi-3 or phi3, and then `</s>` must
  be in the vocabulary.
- An answer ends at the ids of eos, eot and eom, and at tokens that are known by their text.
- `add_bos_token` puts a BOS in front of what the template has rendered; here the template alone writes it.
- It gives templates the day as `date_string`, which those of Llama 3 take before their own; here they never see it.
- Text of the vocabulary has "▁" for a space, text of added tokens does not.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ExportError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE, _FILLER_SCORE = -1000.0, -10000.0
_STRIPPING_NAME = re.compile(r"phi-?3", re.IGNORECASE)
_PRE_NAMES = {
    r"\p{L}+|\p{N}{1,3}|": "dbrx",  # phi-4, and Llama 3 if words that are a token need no merges
    r"\p{L}+|\p{N}|": "qwen2",
    r"\p{M}]+(?i:": "gpt-4o",  # Phi-4-mini
    r"\p{M}]+|[^\r\n": "tekken",  # Mistral Nemo and Small
}
"""What llama.cpp calls a way to find words, by a part of its regular expression."""
# What ends an answer in llama.cpp by its text alone, of the tokens that the supported vocabularies have.
_ENDS_BY_TEXT = {"<|end|>", "<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>"}


def is_sentencepiece(tokenizer: Tokenizer) -> bool:
    """Tell SentencePiece-like BPE, which falls back to bytes, from byte-level BPE.

    Raises: ExportError E-EXP-204 for any other kind.
    """
    model = tokenizer.spec["model"]
    if model["type"] == "BPE" and "ByteLevel" in {part["type"] for part in _pre_tokenizers(tokenizer)}:
        return False
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return True
    raise ExportError(
        "E-EXP-204",
        f"GGUF export knows no tokenizer of type {model['type']} without bytes",
        place=tokenizer.place,
        fix="Export with --format hf",
    )


def model_name(tokenizer: Tokenizer, name: str) -> str:
    """Return a model name that makes llama.cpp strip white space behind control tokens exactly if training did."""
    strips = is_sentencepiece(tokenizer) and any(token.rstrip for token in tokenizer.control_tokens.values())
    if strips:
        return name if _STRIPPING_NAME.search(name) else f"Phi-3 {name}"
    return _STRIPPING_NAME.sub("Phi 3", name)


def add_tokenizer(metadata: Any, tokenizer: Tokenizer, template: str, vocab_size: int) -> None:
    """Add a tokenizer's keys to the writer of a file whose model has `vocab_size` rows.

    Raises: ExportError E-EXP-204 if llama.cpp has no such tokenizer.
    """
    tokens, scores, types = _vocabulary(tokenizer, vocab_size)
    if is_sentencepiece(tokenizer):
        metadata.add_tokenizer_model("llama")
        metadata.add_tokenizer_pre("default")
        metadata.add_token_list(tokens)
        metadata.add_token_scores(scores)
        metadata.add_token_types(types)
        metadata.add_add_space_prefix(tokenizer.prepends_space)
    else:
        metadata.add_tokenizer_model("gpt2")
        metadata.add_tokenizer_pre(pre_name(tokenizer))
        metadata.add_token_list(tokens)
        metadata.add_token_types(types)
        metadata.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    for key, token_id in special_ids(tokenizer).items():
        getattr(metadata, f"add_{key}_token_id")(token_id)
    metadata.add_add_bos_token(False)
    metadata.add_add_eos_token(False)
    metadata.add_chat_template(_without_their_day(template))


def _without_their_day(template: str) -> str:
    """Rename what llama.cpp would set, so that the template writes the day that it wrote in training."""
    return template.replace("date_string", "own_date_string")


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids that llama.cpp wants by name; eot and eom are the stop ids that it would not know otherwise."""
    unknown = tokenizer.full.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": unknown, "pad": tokenizer.pad_id}
    texts = {stop: tokenizer.full.id_to_token(stop) for stop in tokenizer.stop_ids - {tokenizer.eos_id}}
    others = sorted(texts, key=lambda stop: (texts[stop] in _ENDS_BY_TEXT, stop))
    named |= dict(zip(("eom", "eot") if len(others) > 1 else ("eot",), others, strict=False))
    return {key: token_id for key, token_id in named.items() if token_id is not None}


def pre_name(tokenizer: Tokenizer) -> str:
    """Return what llama.cpp calls the way a byte-level tokenizer finds words.

    Raises: ExportError E-EXP-204 for a way that it is not known to have.
    """
    parts = list(_pre_tokenizers(tokenizer))
    kinds = [part["type"] for part in parts]
    patterns = "".join(part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split")
    words_by_itself = all(part.get("use_regex", True) for part in parts if part["type"] == "ByteLevel")
    if kinds == ["Digits", "ByteLevel"] and words_by_itself and parts[0]["individual_digits"]:
        return "smollm"
    if kinds == ["ByteLevel"] and words_by_itself:
        return "gpt-2"
    found = [name for part, name in _PRE_NAMES.items() if part in patterns and kinds == ["Split", "ByteLevel"]]
    if found:
        return "llama-bpe" if found == ["dbrx"] and tokenizer.spec["model"].get("ignore_merges") else found[0]
    raise ExportError(
        "E-EXP-204",
        f"llama.cpp has no name for the way this tokenizer finds words ({', '.join(kinds)} {patterns})",
        place=tokenizer.place,
        fix="Export with --format hf",
    )


def _pre_tokenizers(tokenizer: Tokenizer) -> Iterator[Mapping[str, Any]]:
    """Walk the pre-tokenizers, those inside a sequence one by one."""
    part = tokenizer.spec.get("pre_tokenizer")
    if part is not None:
        yield from part["pretokenizers"] if part["type"] == "Sequence" else [part]


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in tokenizer.spec["model"]["merges"]]


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[float], list[int]]:
    """Return text, score and type of every row of the embedding."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    scores, types = [_FILLER_SCORE] * vocab_size, [_UNUSED] * vocab_size
    ranks = _ranks(tokenizer)
    for token, i in tokenizer.spec["model"]["vocab"].items():
        tokens[i], types[i] = token, _BYTE if _BYTE_TOKEN.fullmatch(token) else _NORMAL
        scores[i] = float(-ranks.get(token, 0))
    for added in tokenizer.spec["added_tokens"]:
        if not added["special"] and "▁" in added["content"] and added["content"] in tokenizer.spec["model"]["vocab"]:
            continue  # Gemma's runs of spaces, which merges make, as they make words
        i = added["id"]
        tokens[i], scores[i], types[i] = added["content"], _ADDED_SCORE, _CONTROL if added["special"] else _USER_DEFINED
    return tokens, scores, types


def _ranks(tokenizer: Tokenizer) -> dict[str, int]:
    """Number the tokens by when their merge comes: SentencePiece joins the pair with the highest score first."""
    ranks: dict[str, int] = {}
    for left, right in _merges(tokenizer):
        ranks.setdefault(left + right, len(ranks) + 1)
    return ranks
