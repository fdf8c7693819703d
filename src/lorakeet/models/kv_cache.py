"""Keys and values of the sequences that are being generated.

data in: the new tokens' keys and values, layer by layer → out: attention over all that is kept. Sequences have
different lengths; each has one row of a rectangle, from column 0 to its length, and the rectangle grows as they do.
A sequence that ends gives its row to the last one, so that the living rows always lie together.

Before each pass of the model, say what it carries: `begin_prompts`, or `begin_step` for one more token of every
sequence. The beginning of a sequence may be copied out (`copy_out`) and handed to a later one that begins alike,
instead of being read again. It knows nothing of rotations: under LongRoPE, whoever generates must begin a sequence
again when it crosses the original length, since its keys were turned by the short factors.

T tokens, M rows, K key-value heads, N columns, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorakeet.models.config import DecoderConfig
from lorakeet.ops.attention.cached import cached_attention

GROWTH = 1.5
MIN_COLUMNS = 64


@dataclass
class _Pass:
    """Where the tokens of the present pass go; see `cached_attention`."""

    rows_T: torch.Tensor
    columns_T: torch.Tensor
    bounds: torch.Tensor
    continues: bool = False
    """Some document's beginning is in the cache already, and it brings more than one token."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """Keys and values of the first tokens of a sequence, in memory of their own: for each layer (K, N, E) twice."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    num_tokens: int


class LayerCache:
    """One layer's keys and values."""

    def __init__(self, keys_MKNE: torch.Tensor, values_MKNE: torch.Tensor) -> None:
        self.keys_MKNE, self.values_MKNE = keys_MKNE, values_MKNE
        self.now: _Pass | None = None

    def attend(
        self,
        q_THE: torch.Tensor,
        k_TKE: torch.Tensor,
        v_TKE: torch.Tensor,
        cu_seqlens: torch.Tensor,
        window: int,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Store the new keys and values and attend to all stored ones; returns (T, H * E)."""
        now, stores = self.now, (self.keys_MKNE, self.values_MKNE)
        assert now is not None, "begin_prompts or begin_step comes before the model's pass"
        place = now.rows_T, now.columns_T, now.bounds, now.continues
        return cached_attention(q_THE, k_TKE, v_TKE, *stores, cu_seqlens, *place, window, scale, softcap)


class KVCache:
    """The cache of all layers; `lengths` says how many tokens of each living sequence it holds."""

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.lengths: list[int] = []
        # The columns that no layer sees any more are those behind the window, if every layer has it.
        self.window = None if config.full_layers else config.sliding_window
        shape = 0, config.num_key_value_heads, 0, config.head_dim
        empty = torch.empty(shape, dtype=dtype, device=device)
        self.layers = [LayerCache(empty, empty) for _ in range(config.num_hidden_layers)]
        self.device = device

    @staticmethod
    def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Return how much one token of one sequence takes."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    @property
    def num_rows(self) -> int:
        """Rows of the rectangle, living or free."""
        return self.layers[0].keys_MKNE.shape[0]

    @property
    def num_columns(self) -> int:
        """Columns of the rectangle."""
        return self.layers[0].keys_MKNE.shape[2]

    def layer(self, layer_idx: int) -> LayerCache:
        """Return the cache of one layer."""
        return self.layers[layer_idx]

    def begin_prompts(self, lengths: Sequence[int], known: Sequence[tuple[Beginning, int] | None] | None = None) -> None:
        """Announce a pass over prompts of these lengths, end to end; they take the rows behind the living.

        Args:
            known: for each prompt, what holds its first tokens and how many of them, fewer than its length: the pass
                carries only the tokens behind them.
        """
        first, known = len(self.lengths), known or [None] * len(lengths)
        self.lengths += lengths
        self._reserve(len(self.lengths), max(lengths))
        starts = [0 if beginning is None else beginning[1] for beginning in known]
        for row, beginning in enumerate(known, start=first):
            if beginning is not None:
                self._copy_in(row, *beginning)
        spans = [range(start, length) for start, length in zip(starts, lengths, strict=True)]
        rows = [row for row, span in enumerate(spans, start=first) for _ in span]
        self._begin(rows, [column for span in spans for column in span], (0, 0, 0), continues=any(starts))

    def copy_out(self, row: int, num_tokens: int) -> Beginning:
        """Copy the keys and values of the first tokens of the sequence in `row`."""
        parts = [(layer.keys_MKNE[row, :, :num_tokens], layer.values_MKNE[row, :, :num_tokens]) for layer in self.layers]
        return Beginning([(keys.clone(), values.clone()) for keys, values in parts], num_tokens)

    def _copy_in(self, row: int, beginning: Beginning, num_tokens: int) -> None:
        for layer, (keys_KNE, values_KNE) in zip(self.layers, beginning.layers, strict=True):
            layer.keys_MKNE[row, :, :num_tokens] = keys_KNE[:, :num_tokens]
            layer.values_MKNE[row, :, :num_tokens] = values_KNE[:, :num_tokens]

    def begin_step(self) -> None:
        """Announce a pass over one more token of every living sequence, in the order of their rows."""
        columns = list(self.lengths)
        self.lengths = [length + 1 for length in columns]
        end = max(self.lengths)
        self._reserve(len(columns), end)
        first = 0 if self.window is None else max(0, min(self.lengths) - self.window)
        self._begin(list(range(len(columns))), columns, (0, first, end))

    def remove(self, row: int) -> None:
        """Forget the sequence in `row`; the sequence in the last living row moves there."""
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if row != last:
            for layer in self.layers:
                for store in (layer.keys_MKNE, layer.values_MKNE):
                    store[row, :, :length] = store[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()

    def _begin(self, rows: list[int], columns: list[int], bounds: tuple[int, int, int], *, continues: bool = False) -> None:
        where = torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device)
        now = _Pass(*where, torch.tensor(bounds), continues)
        for layer in self.layers:
            layer.now = now

    def _reserve(self, rows: int, columns: int) -> None:
        """Enlarge the rectangle where it is too small, keeping what is in it."""
        if rows <= self.num_rows and columns <= self.num_columns:
            return
        if columns > self.num_columns:
            columns = max(columns + MIN_COLUMNS, int(self.num_columns * GROWTH))
        rows, columns = max(rows, self.num_rows), max(columns, self.num_columns)
        for layer in self.layers:
            layer.keys_MKNE = _enlarged(layer.keys_MKNE, rows, columns)
            layer.values_MKNE = _enlarged(layer.values_MKNE, rows, columns)


def _enlarged(store_MKNE: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    old_rows, heads, old_columns, width = store_MKNE.shape
    # Zeros, not empty: what a probability of zero is multiplied by must be a number.
    store = store_MKNE.new_zeros(rows, heads, columns, width)
    store[:old_rows, :, :old_columns] = store_MKNE
    return store
