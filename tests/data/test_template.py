"""Templates: detection by text, parity of every layout with Jinja's rendering, and the sandbox for the others."""

import time
from pathlib import Path

import pytest

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.data.prove import prove
from lorakeet.data.templates.jinja import JinjaTemplate
from lorakeet.data.templates.known import KNOWN_TEXTS, normalized_hash
from lorakeet.data.templates.template import template_for
from lorakeet.errors import ConfigError, DataError, ModelError
from tests.data.conftest import TEMPLATES, trained, with_template
from tests.data.oracle import Oracle, random_conversation

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|user|>' + "
    "message['role'] + '<|tool|>\n\n' + message['content'] | trim + '<|end|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant<|tool|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<|system|>' + role + '\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|system|>model\n' }}{% endif %}"
)
ROW = Conversation(
    (
        Message("user", "Hi <|end|> there"),
        Message("assistant", "Yes <|user|>"),
        Message("user", "b"),
        Message("assistant", "c"),
    ),
    "f:1",
)


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_layouts_match_jinja(path: Path, rng):
    assert KNOWN_TEXTS[normalized_hash(path.read_text())] == path.stem
    base = trained("bpe-chatml" if "im_start" in path.read_text() else "bpe")
    tokenizer = with_template(base, path.stem)
    template = template_for(tokenizer)
    assert template.name == path.stem
    oracle = Oracle(tokenizer)
    for i in range(200):
        row = random_conversation(rng, f"{i}", system="system" in template.roles)
        for messages, ask in ((row.messages, False), (row.messages[:-1], True)):
            pieces = template.render(Conversation(messages), add_generation_prompt=ask)
            assert "".join(piece.text for piece in pieces) == oracle.text(messages, ask)


def test_detection_is_blind_to_spelling():
    text = (TEMPLATES / "phi3-mini-2024-04.jinja").read_text()
    assert normalized_hash(text) == normalized_hash(text.replace("'<|user|>' + '\\n'", "'<|user|>\n'").replace("'", '"'))
    assert normalized_hash(text) != normalized_hash(text.replace("<|end|>", "<|fin|>"))


def test_template_by_name_or_control_tokens():
    bpe, chatml = trained("bpe"), trained("bpe-chatml")
    assert template_for(with_template(bpe, None)).name == "phi4-mini"
    assert template_for(with_template(chatml, None)).name == "phi4"
    assert template_for(bpe, name="phi3.5").name == "phi3.5"
    with pytest.raises(ConfigError, match=r"E-CFG-121.*Known: phi3-mini"):
        template_for(bpe, name="phi9")
    with pytest.raises(ConfigError, match=r"E-CFG-123.*lacks: <.im_end.>"):
        template_for(bpe, name="chatml")
    nothing = with_template(bpe, None, spec={**bpe.spec, "added_tokens": []}, eos_token=None, bos_token=None)
    with pytest.raises(ConfigError, match="E-CFG-122"):
        template_for(nothing)


def test_phi35_skips_an_empty_system_message():
    tokenizer = with_template(trained("bpe"), "phi3.5")
    messages = (Message("system", ""), Message("user", "a"), Message("assistant", "b"))
    pieces = template_for(tokenizer).render(Conversation(messages))
    assert "".join(piece.text for piece in pieces) == Oracle(tokenizer).text(messages)


def jinja(text: str, name: str = "bpe") -> JinjaTemplate:
    base = trained(name)
    return JinjaTemplate(with_template(base, None, chat_template=text))


@pytest.mark.parametrize("text", [LLAMA3, MISTRAL, GEMMA], ids=["llama3", "mistral", "gemma"])
@pytest.mark.parametrize("name", ["bpe", "bpe-rstrip", "unigram-always"])
def test_unknown_templates_are_proven(text, name, rng):
    template = jinja(text, name)
    tokenizer = with_template(trained(name), None, chat_template=text)
    assert template_for(tokenizer).name == "jinja"
    example = encode(ROW, tokenizer, template)
    prove(ROW, example, tokenizer, template)
    texts = [text.strip() for text in tokenizer.decode_inside([example.input_ids[a:b] for a, b in example.spans])]
    assert texts == ["Yes <|user|><|end|>", "c<|end|>"]
    oracle = Oracle(tokenizer)
    for i in range(30):
        row = random_conversation(rng, str(i), system=False)
        ids, mask = oracle.encode(row)
        example = encode(row, tokenizer, template)
        assert example.input_ids == ids
        assert example.num_supervised_tokens == sum(mask)


def test_jinja_matches_the_layout():
    tokenizer = trained("bpe-rstrip")
    own, other = template_for(tokenizer), template_for(tokenizer, name="jinja")
    assert other.name == "jinja"
    assert encode(ROW, tokenizer, own) == encode(ROW, tokenizer, other)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "E-MODEL-75"),
        ("{% set n = namespace(x='aaaa') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "E-MODEL-75"),
        ("{% for a in range(90000) %}{{ 'x' * 9999 }}{% endfor %}", "E-MODEL-75"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}<|end|>", "E-DATA-127"),
        ("{{ cycler.__init__.__globals__.os.system('touch /tmp/lorakeet-canary') }}", "E-DATA-127"),
        ("{% if %}", "E-DATA-127"),
        ("{{ raise_exception('no') }}", "E-DATA-127"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "E-DATA-129"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", "E-DATA-126"),
    ],
)
def test_hostile_or_unprovable_templates_stop(text, code, monkeypatch):
    monkeypatch.setattr("lorakeet.data.templates.jinja.MAX_SECONDS", 3.0)
    template = jinja(text)
    start = time.monotonic()
    with pytest.raises((ModelError, DataError)) as caught:
        encode(ROW, template.tokenizer, template)
    assert caught.value.code == code
    assert time.monotonic() - start < 60
    assert not Path("/tmp/lorakeet-canary").exists()
