"""Beginnings of sequences that were read or generated before, kept for later prompts that begin alike.

data in: keys and values of a sequence that ends → out: those of the longest beginning that a new prompt shares with it.
System prompts and the conversation so far are read once. What is kept belongs to one adapter, by the hash of its
content, and to one side of LongRoPE's switch: nothing else ever sees it.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from lorakeet.machine.memory import free_bytes
from lorakeet.models.kv_cache import Beginning

SHORTEST = 8
"""Beginnings of fewer tokens are read again: copying them would not be faster."""
MOST_BYTES = 2 << 30


def usual_bytes() -> int:
    """Return how much memory beginnings may take: an eighth of what is free, at most 2 GiB."""
    return min(MOST_BYTES, (free_bytes() or MOST_BYTES) // 8)


class PrefixCache:
    """The most recently used beginnings, up to a number of bytes."""

    def __init__(self, max_bytes: int, bytes_per_token: int) -> None:
        self.max_tokens = max_bytes // bytes_per_token
        self.num_hit_tokens = 0
        self._kept: OrderedDict[tuple[Hashable, tuple[int, ...]], Beginning] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Tokens kept now."""
        return sum(beginning.num_tokens for beginning in self._kept.values())

    def find(self, key: Hashable, ids: Sequence[int]) -> tuple[Beginning, int] | None:
        """Return what holds the longest beginning of `ids` under `key`, and its length, which leaves one token at least."""
        best, length = self._longest(key, ids)
        if best is None:
            return None
        self._kept.move_to_end(best)
        self.num_hit_tokens += length
        return self._kept[best], length

    def num_spared(self, key: Hashable, ids: Sequence[int], others: Sequence[Sequence[int]]) -> int:
        """Count the tokens of `others` that need not be read once `ids` is kept, beyond those that are known already."""
        if len(ids) > self.max_tokens:
            return 0
        shared = [_usable(_common(ids, other), other) for other in others]
        return sum(max(0, now - self._longest(key, other)[1]) for now, other in zip(shared, others, strict=True))

    def _longest(self, key: Hashable, ids: Sequence[int]) -> tuple[tuple[Hashable, tuple[int, ...]] | None, int]:
        """Return the entry with the longest beginning of `ids` that can be used, and its length; None and 0 without one."""
        best, length = None, 0
        for entry in self._kept:
            if entry[0] == key and (common := _usable(_common(entry[1], ids), ids)) > length:
                best, length = entry, common
        return best, length

    def knows(self, key: Hashable, ids: Sequence[int]) -> bool:
        """Tell whether all of `ids` is the beginning of something kept."""
        return any(entry[0] == key and _common(entry[1], ids) == len(ids) for entry in self._kept)

    def put(self, key: Hashable, ids: Sequence[int], beginning: Beginning) -> None:
        """Keep the keys and values of `ids`; what they continue and what has not been used longest goes."""
        if beginning.num_tokens > self.max_tokens:
            return
        for entry in [entry for entry in self._kept if entry[0] == key and _common(entry[1], ids) == len(entry[1])]:
            del self._kept[entry]
        self._kept[key, tuple(ids)] = beginning
        while self.num_tokens > self.max_tokens:
            self._kept.popitem(last=False)


def _usable(common: int, ids: Sequence[int]) -> int:
    """Return how much of a common beginning serves a prompt: its last token is read in any case, for what follows it."""
    length = min(common, len(ids) - 1)
    return length if length >= SHORTEST else 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
