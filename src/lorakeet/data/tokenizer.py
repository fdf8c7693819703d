"""A tokenizer read from a model directory, with the control tokens kept apart from text.

data in: `tokenizer.json` and the small JSON files beside it → out: token ids of *text*, never of control tokens.

Text is encoded by copies of the tokenizer that know no control token at all, so that a user who writes `<|end|>`
gets those characters. What a tokenizer does at the edge of a piece of text depends on what stands before it, so
there are three copies (often one and the same):

    start         the text opens the sequence
    middle        the text follows a control token
    continuation  the text follows other text: no space is put in front of it

This file knows no chat template and does not import transformers if there is a `tokenizer.json`.
"""

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorakeet.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

Place = Literal["start", "middle", "continuation"]

# Tokens that end a turn in one known template or another; they stop generation if the model's template uses them.
_END_OF_TURN = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|eot|>", "<|end_of_text|>")
# What an answer is to keep, since the next turn's template looks for it.
SPOKEN = ("<think>", "</think>")
# Unicode White_Space, which is what the tokenizers library strips; str.strip() would also take U+001C to U+001F.
WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Without <s>, which ends or opens a text in other vocabularies.
_HTML = re.compile(
    "</?(?:table|caption|thead|tbody|tfoot|t[rhd]|h[1-6]|blockquote|strong|em|[abiu]|su[bp]|code|html|body|img|span|bbox|[uo]l|li|"
    "div|iframe|footer)>"
)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """An added token that is no text, with the flags that say which whitespace around it disappears."""

    id: int
    content: str
    lstrip: bool
    rstrip: bool
    single_word: bool


class Tokenizer:
    """Turn text into token ids and back; build it with `load_tokenizer`."""

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        stop_ids: frozenset[int] = frozenset(),
        place: str = "",
        num_embeddings: int | None = None,
    ) -> None:
        """`num_embeddings`: rows of the model's embedding, None if the directory does not say."""
        self.spec = {**spec, "truncation": None, "padding": None}
        self.place, self.chat_template, self.num_embeddings = place, chat_template, num_embeddings
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = bos_token, eos_token, unk_token, pad_token
        self.full = _build(self.spec)
        self.control_tokens: dict[str, ControlToken] = {
            token["content"]: ControlToken(
                token["id"], token["content"], token["lstrip"], token["rstrip"], token["single_word"]
            )
            for token in spec["added_tokens"]
            if not _is_ordinary(token)
        }
        self.control_ids: frozenset[int] = frozenset(token.id for token in self.control_tokens.values())
        self.silent_ids: frozenset[int] = frozenset(t.id for t in self.control_tokens.values() if t.content not in SPOKEN)
        self.bos_id = self.full.token_to_id(bos_token) if bos_token else None
        self.eos_id = self.full.token_to_id(eos_token) if eos_token else None
        self.pad_id = self.full.token_to_id(pad_token) if pad_token else None
        ends = {token for token in _END_OF_TURN if chat_template is None or token in chat_template}
        turn_ends = {token.id for token in self.control_tokens.values() if token.content in ends}
        self.stop_ids: frozenset[int] = stop_ids | turn_ends | ({self.eos_id} if self.eos_id is not None else frozenset())
        self.vocab_size = self.full.get_vocab_size(with_added_tokens=True)

    def __reduce__(self) -> tuple:
        return _rebuild, (self._state(),)

    def _state(self) -> dict[str, Any]:
        names = (
            "spec",
            "chat_template",
            "bos_token",
            "eos_token",
            "unk_token",
            "pad_token",
            "stop_ids",
            "place",
            "num_embeddings",
        )
        return {name: getattr(self, name) for name in names}

    @cached_property
    def exceeds_embedding(self) -> bool:
        """Tell whether there are tokens that the model beside it has no embedding of, which some models never use."""
        return self.num_embeddings is not None and max(self.full.get_vocab().values(), default=0) >= self.num_embeddings

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides token ids: vocabulary, flags, template, stop ids."""
        state = self._state()
        state["stop_ids"] = sorted(self.stop_ids)
        del state["place"], state["num_embeddings"]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Match the control tokens in rendered text the way the tokenizer does: leftmost, then longest."""
        by_length = sorted(self.control_tokens.values(), key=lambda token: -len(token.content))
        parts = [rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content) for t in by_length]
        return re.compile("|".join(parts) or r"(?!)")

    @cached_property
    def _plain(self) -> dict[Place, "tokenizers.Tokenizer"]:
        """The copies without control tokens, one for each place; equal copies are one object."""
        built: dict[str, tokenizers.Tokenizer] = {}
        plain: dict[Place, tokenizers.Tokenizer] = {}
        base = _without_control(self.spec)
        for place in ("start", "middle", "continuation"):
            key = json.dumps({part: _at_place(base[part], place) for part in ("normalizer", "pre_tokenizer")})
            if key not in built:
                built[key] = _build({**base, **json.loads(key)})
            plain[place] = built[key]
        return plain

    @cached_property
    def prepends_space(self) -> bool:
        """True if text after a control token gets a space put in front of it, as SentencePiece models do."""
        middle, continuation = self._plain["middle"], self._plain["continuation"]
        return middle is not continuation and middle.encode("a").ids != continuation.encode("a").ids

    @cached_property
    def merges_leading_space(self) -> bool:
        """True if text after a control token gets a space only if it has none: then " a" and "a" are one."""
        middle = self._plain["middle"]
        return self.prepends_space and middle.encode(" a").ids == middle.encode("a").ids

    def token_id(self, token: str) -> int:
        """Look up one token by its text. Raises ModelError if the vocabulary lacks it."""
        found = self.full.token_to_id(token)
        if found is None:
            raise ModelError(
                "E-MODEL-74",
                f'the vocabulary has no token "{token}"',
                place=self.place,
                fix="Use the tokenizer files that belong to this model",
            )
        return found

    def encode_text(self, text: str, *, place: Place = "start") -> list[int]:
        """Encode plain text; names of control tokens in it are ordinary characters, and no bos is added."""
        return self._plain[place].encode(text, add_special_tokens=False).ids

    def encode_texts(self, texts: Sequence[str], *, place: Place = "start") -> list[list[int]]:
        """Encode many texts at once, on all cores."""
        encoded = self._plain[place].encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int], skip_control: bool = False) -> str:
        """Turn ids back into text, control tokens by their names or, but for the marks of reasoning, left out."""
        kept = [i for i in ids if i not in self.silent_ids] if skip_control else list(ids)
        return self.full.decode(kept, skip_special_tokens=False)

    def decode_inside(self, many: Sequence[Sequence[int]]) -> list[str]:
        """Decode stretches from the middle of a text: a space at their start is kept, control tokens are named."""
        # Some decoders strip a space from the very start, so an anchor goes before.
        anchor = self.encode_text("a", place="continuation")
        texts = self.full.decode_batch([anchor + list(ids) for ids in many], skip_special_tokens=False)
        return [text.removeprefix("a") for text in texts]

    def normalize(self, text: str) -> str:
        """Return what the tokenizer makes of text before it looks up tokens: the most that decoding can give back."""
        normalizer = self._plain["continuation"].normalizer
        # "▁" stands for a space in SentencePiece vocabularies.
        return normalizer.normalize_str(text).replace("\u2581", " ") if normalizer is not None else text


def _rebuild(state: dict[str, Any]) -> Tokenizer:
    spec = state.pop("spec")
    return Tokenizer(spec, **state)


def _build(spec: dict[str, Any]) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(json.dumps(spec))


def _is_ordinary(token: dict[str, Any]) -> bool:
    """Tell added tokens that are mere text (Gemma adds runs of line breaks and spaces, and HTML's tags) from control tokens."""
    text = token["content"].replace("\u2581", " ")  # "▁" stands for a space in SentencePiece vocabularies
    return not token["special"] and (not text.strip(WHITESPACE) or _HTML.fullmatch(text) is not None)


def _without_control(spec: dict[str, Any]) -> dict[str, Any]:
    """Copy a tokenizer's description so that no text can produce a control token."""
    control = {token["content"] for token in spec["added_tokens"] if not _is_ordinary(token)}
    ordinary = [token for token in spec["added_tokens"] if _is_ordinary(token)]
    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        # The unknown token must stay known; its literal name is broken up by the model's own pre-tokens.
        hidden = control - {model.get("unk_token")}
        model["vocab"] = {token: i for token, i in model["vocab"].items() if token not in hidden}
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if "".join(_pair(merge)) not in hidden]
    else:
        # Unigram: ids are positions, so the entries stay, under names that no text can contain.
        model["vocab"] = [
            [f"\ufdd0{i}\ufdd1", score] if token in control else [token, score]
            for i, (token, score) in enumerate(model["vocab"])
        ]
    # Ordinary added tokens keep their ids only if the ids before them exist, which the vocabulary guarantees.
    return {**spec, "model": model, "added_tokens": ordinary, "post_processor": None}


def _pair(merge: Any) -> list[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _at_place(part: Any, place: Place) -> Any:
    """Rewrite the prefix-space rules of a normalizer or pre-tokenizer for text that stands at `place`."""
    if not isinstance(part, dict):
        return part
    part = copy.deepcopy(part)
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            part[key] = [new for old in part[key] if (new := _at_place(old, place)) is not None]
    if part["type"] == "Prepend" and place == "continuation":
        return None
    if part["type"] == "ByteLevel" and place == "continuation":
        part["add_prefix_space"] = False
    if part["type"] == "Metaspace":
        scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
        if place == "continuation" or (place == "middle" and scheme == "first"):
            scheme = "never"
        part["prepend_scheme"] = scheme
        part.pop("add_prefix_space", None)
    return part


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a model directory.

    Raises ModelError if the directory holds none or one of its files is damaged.
    """
    directory = Path(directory)
    config = _read_json(directory / "tokenizer_config.json")
    path = directory / "tokenizer.json"
    template = _chat_template(directory, config)
    if path.is_file():
        spec = _read_json(path)
        names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    else:
        spec, names, own_template = _from_transformers(directory)
        template = template or own_template
    if not isinstance(spec.get("model"), dict) or "added_tokens" not in spec:
        raise ModelError(
            "E-MODEL-103", "is not a tokenizer description", place=str(path), fix="Download the model's files again"
        )
    return Tokenizer(
        spec,
        chat_template=template,
        stop_ids=_stop_ids(directory),
        place=str(directory),
        num_embeddings=_num_embeddings(directory),
        **names,
    )


def _num_embeddings(directory: Path) -> int | None:
    """Return how many tokens the model beside the tokenizer has rows for; some have fewer than their tokenizer has tokens."""
    if not (directory / "config.json").is_file():
        return None
    size = _read_json(directory / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def _from_transformers(directory: Path) -> tuple[dict[str, Any], dict[str, str | None], str | None]:
    """Let transformers convert what is there instead of a tokenizer.json (SentencePiece, GGUF)."""
    from transformers import AutoTokenizer

    ggufs = sorted(directory.glob("*.gguf"))
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, **({"gguf_file": ggufs[0].name} if ggufs else {})
        )
        spec = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises many kinds; each means the same to the user
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            "E-MODEL-104",
            f"has no tokenizer that can be read ({reason})",
            place=str(directory),
            fix="Put the model's tokenizer.json there",
        ) from None
    names = {key: getattr(loaded, key, None) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return spec, names, loaded.chat_template if isinstance(loaded.chat_template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError("E-MODEL-103", "is not a JSON object", place=str(path), fix="Download the model's files again")
    return value


def _token_text(value: Any) -> str | None:
    """Read a token that is written as its text or as an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _stop_ids(directory: Path) -> frozenset[int]:
    """Collect every end id that the directory's generation and model configurations name."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found.update(i for i in values if isinstance(i, int) and not isinstance(i, bool))
    return frozenset(found)
