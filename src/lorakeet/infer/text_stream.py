"""Text of a growing answer, piece by piece.

data in: token ids, one by one → out: pieces of text whose sum is the decoded answer. A piece never ends inside a
character: bytes of one character may be spread over several tokens, and then wait for each other.
"""

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
