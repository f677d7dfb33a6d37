"""Attention whose every row has the same bits, whatever else the step computes and however the prompt was cut.

Floating-point sums depend on their order, and libraries choose the order by the shapes they are given. So here every
matrix product, exponential and sum has one shape, fixed by the model: a tile of QUERY_TILE queries against a chunk of
KEY_CHUNK keys. Tiles and chunks begin at multiples of their size, so that a position always lies in the same place of
its tile and meets its keys chunk by chunk in the same order, merged by a running softmax (Milakov and Gimelshein 2018;
FlashAttention's). Everything is computed in float32. What a tile or chunk holds beyond the sequence is zero.

Knows no window's reason, no pool's owner and no request. Shape letters: T, H, K, G, D as in attention_plan.py;
N query tiles of a sequence, Q = QUERY_TILE * G rows of one, C = KEY_CHUNK.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

QUERY_TILE = 8  # small, as a decode step pays for a whole tile
KEY_CHUNK = 256  # the largest block, so that a chunk is whole blocks
_HIDDEN = -1e30  # finite, so that a row whose chunk is all hidden stays a number: what it adds is multiplied by 0 later


@dataclass(frozen=True, slots=True)
class KeyChunk:
    """KEY_CHUNK positions of one sequence, as far as it has them."""

    first_position: int
    num_keys: int
    tiles: torch.Tensor  # int64 [2 * K * M] rows of a layer's tiles


@dataclass(frozen=True, slots=True)
class DeterministicSequence:
    """One sequence's new tokens and the chunks that any of them may see."""

    first_row: int
    num_tokens: int
    first_query: int  # position
    window: int | None
    chunks: tuple[KeyChunk, ...]

    @property
    def first_tile(self) -> int:
        return self.first_query // QUERY_TILE

    @property
    def num_tiles(self) -> int:
        return (self.first_query + self.num_tokens - 1) // QUERY_TILE + 1 - self.first_tile


def plan_deterministic(
    tiles: NDArray[np.int64],
    *,
    first_row: int,
    num_tokens: int,
    context: int,
    window: int | None,
    block_tokens: int,
) -> DeterministicSequence:
    """Cut one sequence's table into chunks.

    Args:
        tiles: ``[2 * K * M]`` in the order [2, K, M]: tile rows of the sequence's M blocks.
    """
    num_blocks = -(-context // block_tokens)
    tiles_EM = tiles.reshape(-1, num_blocks)
    per_chunk = KEY_CHUNK // block_tokens
    first_query = context - num_tokens
    first_chunk = _first_seen(first_query // QUERY_TILE, window) // KEY_CHUNK
    chunks = tuple(
        KeyChunk(
            chunk * KEY_CHUNK,
            min(KEY_CHUNK, context - chunk * KEY_CHUNK),
            torch.from_numpy(tiles_EM[:, chunk * per_chunk : (chunk + 1) * per_chunk].ravel()),
        )
        for chunk in range(first_chunk, -(-context // KEY_CHUNK))
    )
    return DeterministicSequence(first_row, num_tokens, first_query, window, chunks)


def _first_seen(tile: int, window: int | None) -> int:
    """First position that any query of a tile (counted from position 0) sees."""
    return 0 if window is None else max(tile * QUERY_TILE + 1 - window, 0)


def attend_deterministically(
    q_THD: torch.Tensor,
    tiles_ME: torch.Tensor,
    sequences: Sequence[DeterministicSequence],
    bench: "Bench",
    scratch: torch.Tensor,
    out_TE: torch.Tensor,
) -> None:
    """Attend as paged_attention does; see there.

    Args:
        tiles_ME: ``[*, B * D]``: the pool from one layer's first tile on.
        bench: of this model's heads; overwritten.
        scratch: pool's dtype, ``[most tiles of one chunk, B * D]``; overwritten.
        out_TE: ``[T, H * D]``; overwritten.
    """
    for sequence in sequences:
        rows = slice(sequence.first_row, sequence.first_row + sequence.num_tokens)
        state = _Softmax(bench, sequence.num_tiles)
        q_NKQD = bench.tile_queries(q_THD[rows], sequence)
        for chunk in sequence.chunks:
            gathered = scratch[: len(chunk.tiles)]
            torch.index_select(tiles_ME, 0, chunk.tiles, out=gathered)
            bench.load_chunk(gathered, chunk.num_keys)
            for index in range(sequence.num_tiles):
                _attend_tile(bench, state, q_NKQD[index], sequence, chunk, index)
        out_TE[rows] = bench.untile(state.result(), sequence)


class Bench:
    """The operands of every product, in memory of their own: a library may choose its order by alignment, too."""

    def __init__(self, num_kv_heads: int, group: int, head_dim: int) -> None:
        self.heads, self.group, self.head_dim = num_kv_heads, group, head_dim
        rows = QUERY_TILE * group
        self.q_KQD = torch.empty(num_kv_heads, rows, head_dim)
        self.kv_2KCD = torch.empty(2, num_kv_heads, KEY_CHUNK, head_dim)
        self.scores_KQC = torch.empty(num_kv_heads, rows, KEY_CHUNK)
        self.added_KQD = torch.empty(num_kv_heads, rows, head_dim)
        apart = torch.arange(-KEY_CHUNK, KEY_CHUNK) - torch.arange(QUERY_TILE)[:, None]  # key - query, over positions
        self._apart_QX = apart.repeat_interleave(group, dim=0)

    def tile_queries(self, q_THD: torch.Tensor, sequence: DeterministicSequence) -> torch.Tensor:
        """Queries of one sequence in its tiles, scaled: ``[N, K, Q, D]``; places of other positions hold 0."""
        num_tiles, before = sequence.num_tiles, sequence.first_query % QUERY_TILE
        placed = torch.zeros(num_tiles * QUERY_TILE, self.heads, self.group, self.head_dim)
        placed[before : before + len(q_THD)] = q_THD.reshape(-1, self.heads, self.group, self.head_dim)
        placed *= self.head_dim**-0.5
        split = placed.view(num_tiles, QUERY_TILE, self.heads, self.group, self.head_dim).transpose(1, 2)
        return split.reshape(num_tiles, self.heads, -1, self.head_dim)

    def untile(self, out_NKQD: torch.Tensor, sequence: DeterministicSequence) -> torch.Tensor:
        """The inverse: ``[tokens, H * D]``."""
        before = sequence.first_query % QUERY_TILE
        split = out_NKQD.view(-1, self.heads, QUERY_TILE, self.group * self.head_dim).transpose(1, 2)
        flat = split.reshape(-1, self.heads * self.group * self.head_dim)
        return flat[before : before + sequence.num_tokens]

    def load_chunk(self, gathered: torch.Tensor, num_keys: int) -> None:
        """Copy a chunk's blocks in; what lies behind its keys, unused slots among it, becomes 0."""
        blocks = gathered.view(2, self.heads, -1, self.head_dim)
        self.kv_2KCD[:, :, :num_keys] = blocks[:, :, :num_keys]
        self.kv_2KCD[:, :, num_keys:] = 0

    def hide(self, first_query: int, first_key: int, window: int | None) -> None:
        """Hide what a tile beginning at ``first_query`` may not see of a chunk beginning at ``first_key``."""
        start = KEY_CHUNK + first_key - first_query
        if first_key + KEY_CHUNK > first_query:
            self.scores_KQC.masked_fill_(self._apart_QX[:, start : start + KEY_CHUNK] > 0, _HIDDEN)
        if window is not None and first_query + QUERY_TILE - window > first_key:
            keys = torch.arange(first_key, first_key + KEY_CHUNK)
            hidden_QC = keys <= torch.arange(first_query, first_query + QUERY_TILE)[:, None] - window
            self.scores_KQC.masked_fill_(hidden_QC.repeat_interleave(self.group, dim=0), _HIDDEN)


class _Softmax:
    """The running softmax of a sequence's tiles: largest score, sum of weights and weighted values so far."""

    def __init__(self, bench: Bench, num_tiles: int) -> None:
        shape = (num_tiles, bench.heads, QUERY_TILE * bench.group)
        self.largest = torch.full((*shape, 1), -torch.inf)
        self.total = torch.zeros(*shape, 1)
        self.values = torch.zeros(*shape, bench.head_dim)

    def result(self) -> torch.Tensor:
        return self.values / self.total


def _attend_tile(
    bench: Bench,
    state: _Softmax,
    q_KQD: torch.Tensor,
    sequence: DeterministicSequence,
    chunk: KeyChunk,
    index: int,
) -> None:
    """Merge what one tile sees of one chunk into its state."""
    tile = sequence.first_tile + index
    first_query = tile * QUERY_TILE
    if not _first_seen(tile, sequence.window) < chunk.first_position + KEY_CHUNK <= first_query + KEY_CHUNK:
        return
    bench.q_KQD.copy_(q_KQD)
    keys_KCD, values_KCD = bench.kv_2KCD
    scores = torch.bmm(bench.q_KQD, keys_KCD.transpose(1, 2), out=bench.scores_KQC)
    bench.hide(first_query, chunk.first_position, sequence.window)
    largest = torch.maximum(state.largest[index], scores.amax(-1, keepdim=True))
    kept = (state.largest[index] - largest).exp_()
    scores.sub_(largest).exp_()
    state.total[index].mul_(kept).add_(scores.sum(-1, keepdim=True))
    added = torch.bmm(scores, values_KCD, out=bench.added_KQD)
    state.values[index].mul_(kept).add_(added)
    state.largest[index].copy_(largest)
