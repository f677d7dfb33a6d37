"""Turns a packed batch into the index tensors that attention reads and writes by, once for all layers of a step.

Knows no model, no block pool and no request: the caller says which blocks hold which sequence.

Shape letters: T query tokens of the step, S sequences, R decode rows (sequences with one new token), H query heads,
K key/value heads, G = H / K, D head size, B tokens in a block, M blocks read of a table, C = M * B, N blocks and L
layers of the pool ``[N, L, 2, K, B, D]``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from twinpool.kernels.deterministic_attention import Bench, DeterministicSequence, plan_deterministic

QUERY_TILE = 64  # prefill queries of one SDPA call: bounds the mask, and skips most of what causality hides

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows that read about equally many blocks, attended in one call."""

    rows: torch.Tensor  # int64 [R], in the packed batch
    tiles: torch.Tensor  # int64 [2 * R * K * M] rows of the pool seen as [N * L * 2 * K, B * D], at layer 0
    first: int  # columns [first, end) of the C that were read are all that any row sees
    end: int
    mask: torch.Tensor | None  # [R, 1, 1, end - first], additive; None when each row sees all of these columns


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """One sequence's new tokens, attending to all of its context, or to what their window shows of it."""

    first_row: int
    num_tokens: int
    first_position: int  # of the context that was read
    context: int
    tiles: torch.Tensor  # as above with R = 1


@dataclass(frozen=True, slots=True)
class View:
    """What the layers of one window read."""

    window: int | None
    decodes: tuple[DecodeGroup, ...] = ()
    prefills: tuple[PrefillSequence, ...] = ()
    tile_mask: torch.Tensor | None = None  # [QUERY_TILE * G, most columns of one tile], additive; see _tile_mask
    deterministic: tuple[DeterministicSequence, ...] = ()  # in place of the others


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where one step reads and writes; made once, used by every layer."""

    num_kv_heads: int
    group: int  # G
    positions: torch.Tensor  # int64 [T]: each token's position in its sequence
    write_rows: torch.Tensor  # int64 [T * 2 * K] rows of the pool seen as [N * L * 2 * K * B, D], at layer 0
    fresh_tiles: torch.Tensor | None  # int64: tiles of blocks that this step begins and does not fill, if any
    views: tuple[View, ...]  # one for each layer; layers of one window share theirs
    scratch: torch.Tensor  # [most tiles of one call, B * D]: fresh memory for each layer would cost its page faults
    bench: Bench | None  # of deterministic attention


def plan_attention(
    cu_seqlens: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    block_tables: Sequence[Ints],
    pool: torch.Tensor,
    num_heads: int,
    windows: Sequence[int | None] | None = None,
    deterministic: bool = False,
) -> AttentionPlan:
    """Turn a packed batch into index tensors.

    Args:
        cu_seqlens: ``[S + 1]``, from 0, strictly rising: sequence s owns rows ``[cu_seqlens[s], cu_seqlens[s + 1])``.
        context_lens: ``[S]`` tokens of each sequence after the step, the new ones among them.
        block_tables: S arrays of at least ``ceil(context / B)`` block ids.
        pool: ``[N, L, 2, K, B, D]``, contiguous.
        num_heads: H, a multiple of K.
        windows: for each layer, how many keys a query sees, itself and those before it; None is all of them.
        deterministic: attend so that a row's bits depend on its own sequence only; see deterministic_attention.py.

    Raises:
        ValueError: a shape or range above does not hold.
    """
    num_layers, _, num_kv_heads, block_tokens, head_dim = pool.shape[1:]
    windows = (None,) * num_layers if windows is None else tuple(windows)
    _check_model(pool, num_heads, windows)
    first_rows = np.asarray(cu_seqlens, dtype=np.int64)
    contexts, new_lens = np.asarray(context_lens, dtype=np.int64), np.diff(first_rows)
    _check_batch(first_rows, new_lens, contexts, block_tables, block_tokens)
    tables = _lay_out_tables(block_tables, contexts, pool)
    sequence_T = np.repeat(np.arange(len(contexts)), new_lens)
    positions_T = np.arange(len(sequence_T)) + (contexts - first_rows[1:])[sequence_T]
    planner = _Planner(tables, first_rows, new_lens, contexts, num_heads // num_kv_heads, pool.dtype)
    longest = int(contexts.max())
    seen = [None if window is None or window >= longest else window for window in windows]
    make = planner.deterministic_view if deterministic else planner.view
    views = {window: make(window) for window in dict.fromkeys(seen)}
    return AttentionPlan(
        num_kv_heads=num_kv_heads,
        group=num_heads // num_kv_heads,
        positions=torch.from_numpy(positions_T),
        write_rows=tables.write_rows(sequence_T, positions_T),
        fresh_tiles=tables.fresh_tiles(new_lens, contexts),
        views=tuple(views[window] for window in seen),
        scratch=_scratch(views.values(), pool),
        bench=Bench(num_kv_heads, num_heads // num_kv_heads, head_dim) if deterministic else None,
    )


@dataclass(frozen=True, slots=True)
class _Tables:
    """Block tables end to end, and where their blocks' tiles (one block, layer, K or V, head) lie in the pool."""

    flat: Ints
    starts: Ints  # [S] where each table begins in ``flat``
    used: Ints  # [S] its blocks
    tiles_per_block: int  # L * 2 * K
    num_kv_heads: int
    block_tokens: int

    def tiles_of(self, blocks_RM: Ints) -> Ints:
        """Tile rows in the order [2, R, K, M], flat."""
        heads = np.arange(2 * self.num_kv_heads).reshape(2, 1, self.num_kv_heads, 1)
        return (blocks_RM[None, :, None, :] * self.tiles_per_block + heads).ravel()

    def gather(self, sequences: Ints, first_R: Ints) -> torch.Tensor:
        """Tile rows of tables from block ``first_R`` on; short ones are padded with a block of their own."""
        counts_R1 = (self.used[sequences] - first_R)[:, None]
        columns = np.arange(counts_R1.max())[None, :]
        blocks_RM = self.flat[(self.starts[sequences] + first_R)[:, None] + np.where(columns < counts_R1, columns, 0)]
        return torch.from_numpy(self.tiles_of(blocks_RM))

    def fresh_tiles(self, new_lens: Ints, contexts: Ints) -> torch.Tensor | None:
        """Tile rows of the last blocks that this step begins and leaves partly unused."""
        begun = (self.used - 1) * self.block_tokens >= contexts - new_lens
        begun &= contexts % self.block_tokens > 0
        if not begun.any():
            return None
        blocks = self.flat[self.starts + self.used - 1][begun]
        return torch.from_numpy(self.tiles_of(blocks[None, :]))

    def write_rows(self, sequence_T: Ints, positions_T: Ints) -> torch.Tensor:
        """Rows of D elements in the order [T, 2, K], flat."""
        blocks_T = self.flat[self.starts[sequence_T] + positions_T // self.block_tokens]
        tiles_TE = blocks_T[:, None] * self.tiles_per_block + np.arange(2 * self.num_kv_heads)
        return torch.from_numpy((tiles_TE * self.block_tokens + (positions_T % self.block_tokens)[:, None]).ravel())


@dataclass(frozen=True, slots=True)
class _Planner:
    """One batch, from which the view of each window is made."""

    tables: _Tables
    first_rows: Ints
    new_lens: Ints
    contexts: Ints
    group: int
    dtype: torch.dtype

    def view(self, window: int | None) -> View:
        first_seen = self._first_seen(window)
        first_blocks = first_seen // self.tables.block_tokens
        prefills = tuple(self._prefill(int(s), first_blocks) for s in np.flatnonzero(self.new_lens > 1))
        mask = None
        if prefills:
            widest = max(sequence.context - sequence.first_position for sequence in prefills)
            mask = _tile_mask(self.group, widest, window, self.dtype)
        return View(window, self._decodes(first_seen, first_blocks), prefills, mask)

    def deterministic_view(self, window: int | None) -> View:
        sequences = tuple(
            plan_deterministic(
                self.tables.tiles_of(table[None, :]),
                first_row=int(self.first_rows[s]),
                num_tokens=int(self.new_lens[s]),
                context=int(self.contexts[s]),
                window=window,
                block_tokens=self.tables.block_tokens,
            )
            for s, table in enumerate(np.split(self.tables.flat, self.tables.starts[1:]))
        )
        return View(window, deterministic=sequences)

    def _first_seen(self, window: int | None) -> Ints:
        """[S] the first position that any new token of a sequence sees."""
        if window is None:
            return np.zeros_like(self.contexts)
        first_S: Ints = np.maximum(self.contexts - self.new_lens + 1 - window, 0)
        return first_S

    def _prefill(self, s: int, first_blocks: Ints) -> PrefillSequence:
        return PrefillSequence(
            first_row=int(self.first_rows[s]),
            num_tokens=int(self.new_lens[s]),
            first_position=int(first_blocks[s]) * self.tables.block_tokens,
            context=int(self.contexts[s]),
            tiles=self.tables.gather(np.array([s]), first_blocks[[s]]),
        )

    def _decodes(self, first_seen: Ints, first_blocks: Ints) -> tuple[DecodeGroup, ...]:
        """Single-token sequences by the power of two above the blocks they read: padding less than doubles the work."""
        single = np.flatnonzero(self.new_lens == 1)
        if not len(single):
            return ()
        sizes = np.frexp(self.tables.used[single] - first_blocks[single] - 0.5)[1]
        groups = []
        for size in sorted(set(sizes.tolist())):
            sequences = single[sizes == size]
            first_R = first_blocks[sequences]
            before_R = first_R * self.tables.block_tokens
            low_R, high_R = first_seen[sequences] - before_R, self.contexts[sequences] - before_R
            first, end = int(low_R.min()), int(high_R.max())
            mask = _column_mask(low_R - first, high_R - first, end - first, self.dtype)
            rows = torch.from_numpy(self.first_rows[sequences])
            groups.append(DecodeGroup(rows, self.tables.gather(sequences, first_R), first, end, mask))
        return tuple(groups)


def _column_mask(low_R: Ints, high_R: Ints, width: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Hides from each row the columns outside its [low, high); None when there are none."""
    if low_R.max() == 0 and high_R.min() == width:
        return None
    columns = np.arange(width)
    hidden = (columns < low_R[:, None]) | (columns >= high_R[:, None])
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0)))[:, None, None, :].to(dtype)


def _tile_mask(group: int, widest: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """One additive mask that serves every tile of every prefill, aligned at its right and lower edges.

    Row ``i * G + g`` belongs to query i of QUERY_TILE; it hides the keys after the query, which are the last columns,
    and those before its window. A tile of fewer queries takes the last rows, a shorter context the last columns.
    """
    width = max(widest, QUERY_TILE)
    if window is not None:
        width = min(width, window - 1 + QUERY_TILE)
    own = np.arange(width - QUERY_TILE, width)[:, None]
    columns = np.arange(width)
    hidden = columns > own
    if window is not None:
        hidden |= columns <= own - window
    mask_QC = torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0))).to(dtype)
    return mask_QC.repeat_interleave(group, dim=0)


def _scratch(views: Iterable[View], pool: torch.Tensor) -> torch.Tensor:
    most = 0
    for view in views:
        chunks = (chunk.tiles for sequence in view.deterministic for chunk in sequence.chunks)
        decodes, prefills = (part.tiles for part in view.decodes), (part.tiles for part in view.prefills)
        most = max(most, *map(len, chain(decodes, prefills, chunks)))
    return torch.empty((most, pool.shape[-2] * pool.shape[-1]), dtype=pool.dtype)


def _lay_out_tables(block_tables: Sequence[Ints], contexts: Ints, pool: torch.Tensor) -> _Tables:
    num_blocks, num_layers, _, num_kv_heads, block_tokens, _ = pool.shape
    used = -(-contexts // block_tokens)
    flat = np.concatenate([table[:count] for table, count in zip(block_tables, used.tolist(), strict=True)])
    if flat.min() < 0 or flat.max() >= num_blocks:
        raise ValueError(f"a block id is not in [0, {num_blocks})")
    return _Tables(flat, np.cumsum(used) - used, used, num_layers * 2 * num_kv_heads, num_kv_heads, block_tokens)


def _check_model(pool: torch.Tensor, num_heads: int, windows: Sequence[int | None]) -> None:
    num_layers, num_kv_heads = pool.shape[1], pool.shape[3]
    if not pool.is_contiguous() or num_heads % num_kv_heads:
        raise ValueError(f"the pool is not contiguous, or {num_kv_heads} KV heads do not divide {num_heads} heads")
    if len(windows) != num_layers or any(window is not None and window < 1 for window in windows):
        raise ValueError(f"{num_layers} layers need as many windows of at least one key, not {windows}")


def _check_batch(
    first_rows: Ints, new_lens: Ints, contexts: Ints, block_tables: Sequence[Ints], block_tokens: int
) -> None:
    if len(first_rows) != len(contexts) + 1 or len(block_tables) != len(contexts) or len(contexts) == 0:
        raise ValueError(
            f"{len(first_rows)} bounds, {len(contexts)} contexts and {len(block_tables)} tables do not fit"
        )
    if first_rows[0] != 0 or new_lens.min() < 1 or (contexts < new_lens).any():
        raise ValueError("a sequence has no new token, or more new tokens than context")
    for sequence, (table, context) in enumerate(zip(block_tables, contexts.tolist(), strict=True)):
        if len(table) * block_tokens < context:
            raise ValueError(f"sequence {sequence}: {len(table)} blocks cannot hold {context} tokens")
