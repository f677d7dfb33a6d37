"""Which bytes of a request's KV move in which message; both ends derive it from the same values.

Pure. Knows ranges and sizes: no link, no clock, no memory.
"""

from dataclasses import dataclass, replace

from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Layers ``[first_layer, end_layer)`` of a request's blocks ``[first_block, end_block)``, which count from 0."""

    first_layer: int
    end_layer: int
    first_block: int
    end_block: int

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.first_layer

    @property
    def num_blocks(self) -> int:
        return self.end_block - self.first_block

    def num_bytes(self, layout: KVLayout) -> int:
        """Bytes on the wire, raw codec."""
        return self.num_layers * self.num_blocks * layout.block_layer_bytes

    def is_within(self, num_layers: int, num_blocks: int) -> bool:
        """Whether the span is not empty and lies inside a request of this many layers and blocks."""
        return (
            0 <= self.first_layer < self.end_layer <= num_layers
            and 0 <= self.first_block < self.end_block <= num_blocks
        )


def layer_groups(num_layers: int, per_group: int) -> tuple[tuple[int, int], ...]:
    """The layer ranges ``[first, end)`` that move together: ``per_group`` layers each, the last one what is left."""
    if num_layers < 1 or per_group < 1:
        raise ValueError(f"{num_layers} layers in groups of {per_group}: both must be at least 1")
    return tuple((first, min(first + per_group, num_layers)) for first in range(0, num_layers, per_group))


def blocks_completed(tokens_before: int, tokens_after: int, is_last: bool, block_tokens: int) -> tuple[int, int]:
    """The blocks ``[first, end)`` that a prefill chunk of tokens ``[tokens_before, tokens_after)`` completes.

    A block is complete when no later token of the prompt falls into it; so the last chunk completes a partial block.
    Ranges of successive chunks are adjacent, and may be empty.
    """
    if not 0 <= tokens_before <= tokens_after:
        raise ValueError(f"a chunk cannot reach from token {tokens_before} to {tokens_after}")
    end = -(-tokens_after // block_tokens) if is_last else tokens_after // block_tokens
    return tokens_before // block_tokens, end


def spans_of_chunk(
    tokens_before: int, tokens_after: int, is_last: bool, block_tokens: int, layers: tuple[tuple[int, int], ...]
) -> tuple[Span, ...]:
    """One span for each layer group, of the blocks that a prefill chunk completes; none when it completes no block.

    For blocks taken from the prefix cache, ``tokens_before`` is 0 and ``tokens_after`` the number of tokens taken.
    ``layers`` are the groups whose KV is written: all of a chunk's, or one at a time as they are computed.
    """
    first, end = blocks_completed(tokens_before, tokens_after, is_last, block_tokens)
    if first == end:
        return ()
    return tuple(Span(first_layer, end_layer, first, end) for first_layer, end_layer in layers)


def max_skip_blocks(num_tokens: int, block_tokens: int) -> int:
    """How many leading blocks a target may already hold: never the last one, so at least one block always moves."""
    return (num_tokens - 1) // block_tokens


def clip(span: Span, skip_blocks: int) -> Span | None:
    """The part of ``span`` that a target lacks which holds the first ``skip_blocks`` blocks; None when it is empty."""
    if span.end_block <= skip_blocks:
        return None
    return replace(span, first_block=max(span.first_block, skip_blocks))


def join(span: Span, following: Span | None) -> Span | None:
    """Both as one span, where the second has the layers, or the blocks, right behind the first; else None."""
    if following is None:
        return None
    blocks = (span.first_block, span.end_block) == (following.first_block, following.end_block)
    if blocks and span.end_layer == following.first_layer:
        return replace(span, end_layer=following.end_layer)
    layers = (span.first_layer, span.end_layer) == (following.first_layer, following.end_layer)
    if layers and span.end_block == following.first_block:
        return replace(span, end_block=following.end_block)
    return None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which (layer, block) pairs of ``[0, layers) x [skip_blocks, num_blocks)`` have been covered, each at most once.

    A value: one bit set of blocks for each layer, so that a span costs a few operations per layer, not per block.
    """

    num_blocks: int
    skip_blocks: int
    rows: tuple[int, ...]  # by layer; bit b: block b is covered
    num_missing: int  # (layer, block) pairs

    @classmethod
    def of(cls, num_layers: int, skip_blocks: int, num_blocks: int) -> "Coverage":
        """Nothing covered yet."""
        return cls(num_blocks, skip_blocks, (0,) * num_layers, num_layers * (num_blocks - skip_blocks))

    @property
    def is_complete(self) -> bool:
        return self.num_missing == 0

    def is_inside(self, span: Span) -> bool:
        """Whether the span is not empty and lies in the range to cover: its size on a link can be trusted."""
        return span.is_within(len(self.rows), self.num_blocks) and span.first_block >= self.skip_blocks

    def overlaps(self, span: Span) -> bool:
        """Whether a (layer, block) of the span is covered already."""
        mask = _block_mask(span)
        return any(row & mask for row in self.rows[span.first_layer : span.end_layer])

    def with_span(self, span: Span) -> "Coverage":
        """The coverage with ``span`` added.

        Raises:
            ValueError: the span is empty, reaches outside, or overlaps what is covered.
        """
        if not self.is_inside(span) or self.overlaps(span):
            raise ValueError(
                f"{span} does not tile {len(self.rows)} layers, blocks {self.skip_blocks}:{self.num_blocks}"
            )
        mask = _block_mask(span)
        first, end = span.first_layer, span.end_layer
        rows = (*self.rows[:first], *(row | mask for row in self.rows[first:end]), *self.rows[end:])
        return replace(self, rows=rows, num_missing=self.num_missing - span.num_layers * span.num_blocks)


def _block_mask(span: Span) -> int:
    return ((1 << span.num_blocks) - 1) << span.first_block
