"""Hold out a part of the rows for evaluation, so that no row is on both sides.

data in: conversations, a fraction, a seed → out: (training rows, held-out rows), each in the order given.
"""

import hashlib
from collections.abc import Sequence

from lorakeet.data.conversation import Conversation

MOST_HELD_OUT = 200
"""More rows cost time at every evaluation and tell little more."""


def hold_out(
    conversations: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Split rows by a hash of what they say, so that equal rows always fall on the same side.

    The held-out rows are those with the smallest hashes: about `fraction` of the rows, at most 200, and none where
    that would be less than one row. A row's side depends on the seed and its text, never on its place in the file.
    """
    wanted = min(MOST_HELD_OUT, int(len(conversations) * fraction))
    if wanted == 0:
        return list(conversations), []
    digests = [_digest(conversation, seed) for conversation in conversations]
    border = sorted(digests)[wanted]
    held_out = [row for row, digest in zip(conversations, digests, strict=True) if digest < border]
    return [row for row, digest in zip(conversations, digests, strict=True) if digest >= border], held_out


def _digest(conversation: Conversation, seed: int) -> bytes:
    said = repr((conversation.messages, conversation.tools, conversation.text))
    return hashlib.sha256(f"{seed}/{said}".encode("utf-8", "surrogatepass")).digest()
