"""Text of a growing answer, piece by piece, up to a stop string.

data in: token ids, one by one → out: pieces of text whose sum is the decoded answer. A piece never ends inside a
character: bytes of one character may be spread over several tokens, and then wait for each other.
"""

from collections.abc import Sequence

from lorakeet.data.tokenizer import Tokenizer

# What decoders write for bytes that are no character, or not yet.
REPLACEMENT = "\ufffd"


class TextStream:
    """Decode one answer as it grows; control tokens leave no text.

    How a token decodes may depend on the one before it (SentencePiece drops the space in front of the first), so a
    new token is always decoded together with the tokens of the last piece, whose text is then taken off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._piece_start = self._piece_end = 0

    def push(self, token_id: int) -> str:
        """Take one more token; returns the text that is certain now, perhaps none."""
        if token_id in self._tokenizer.silent_ids:
            return ""
        self._ids.append(token_id)
        return self._next_piece(is_last=False)

    def finish(self) -> str:
        """Return what still waited for bytes that never came."""
        return self._next_piece(is_last=True)

    def _next_piece(self, *, is_last: bool) -> str:
        shown = self._tokenizer.decode(self._ids[self._piece_start : self._piece_end])
        text = self._tokenizer.decode(self._ids[self._piece_start :])
        piece = text[len(shown) :]
        if not piece or (piece.endswith(REPLACEMENT) and not is_last):
            return ""
        self._piece_start, self._piece_end = self._piece_end, len(self._ids)
        return piece


class StopText:
    """Hold back what may be the beginning of a stop string, and cut the text where one is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to stand before any stop string."""
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """Return what was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
