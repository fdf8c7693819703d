"""The mask oracle: written apart from the package, slow, and on characters instead of pieces.

It renders with Jinja itself, lets the whole tokenizer (control tokens included) encode the rendered text, and says
which tokens are learned from character offsets: those that start inside an answer or at its end token.
"""

import random

import jinja2.sandbox

from lorakeet.data.conversation import Conversation, Message

_TEXT = """the quick brown fox 12 + 30 = 42. Hello, how are you? straße привет 你好 x y; once far land don't I'll a b
C++ (see) [1] {k: v} <b> "q" 3.14 -1 100% foo_bar a/b"""
WORDS = _TEXT.split()
GAPS = (" ", " ", " ", "\n", "  ", "\n\n", ", ")


class Oracle:
    """Ids and mask of ordinary conversations."""

    def __init__(self, tokenizer) -> None:
        self.backend, self.stop = tokenizer.full, tokenizer.stop_ids
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(tokenizer.chat_template)
        self.names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}

    def text(self, messages, ask=False) -> str:
        plain = [{"role": m.role, "content": m.content} for m in messages]
        return self.template.render(messages=plain, add_generation_prompt=ask, **self.names)

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return (ids, 1 for every learned token)."""
        messages = conversation.messages
        whole = self.backend.encode(self.text(messages), add_special_tokens=False)
        ids, starts = whole.ids, [start for start, _ in whole.offsets]
        mask = [0] * len(ids)
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            start = len(self.text(messages[:i], ask=True))
            for at in range(len(ids)):
                if starts[at] >= start:
                    mask[at] = 1
                    if ids[at] in self.stop:
                        break
        return ids, mask


def random_conversation(rng: random.Random, place: str, *, system: bool) -> Conversation:
    """Make up an ordinary conversation: no control tokens in it, no whitespace around its contents."""

    def content() -> str:
        parts = [rng.choice(WORDS) + rng.choice([" ", " ", " ", "\n", "  ", "\n\n", ", "]) for _ in range(rng.randint(1, 6))]
        return "".join(parts).strip() or "a"

    messages = [Message("system", content())] if system and rng.random() < 0.3 else []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        messages += [Message("user", content()), Message("assistant", content())]
    return Conversation(tuple(messages), place)
