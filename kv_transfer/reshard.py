"""Which chunks each rank of a source sends to each rank of a target, when the two workers may differ in shape.

Heads are cut or joined, layers regrouped, and a head that many source ranks hold is sent by one of them. Both ends
derive the same from the same values. Pure: knows ranges and sizes, no link, no clock and no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from twinpool.kv_transfer.chunks import cut_group
from twinpool.kv_transfer.plan import Span, clip, max_skip_blocks
from twinpool.kv_transfer.rank_shape import RankShare, WorkerShape, shares_of
from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True, order=True)
class HeadSpan:
    """A span of layers and blocks, of the KV heads ``[first_head, end_head)`` only.

    Its bytes lie on a link in the order ``[block, layer, 2 (K, V), kv_heads, block_tokens, head_dim]``, whole blocks
    always: of a partial last block the unused tokens move too, as they do between workers of one shape.
    """

    span: Span
    first_head: int
    end_head: int

    @property
    def num_heads(self) -> int:
        return self.end_head - self.first_head

    def num_bytes(self, layout: KVLayout) -> int:
        """Bytes on the wire, raw codec; any rank's layout will do, or the model's."""
        return self.span.num_bytes(replace(layout, num_kv_heads=self.num_heads))

    def local_to(self, share: RankShare) -> "HeadSpan":
        """The same, with layers and heads counted as in that rank's pool, which must hold them."""
        span = replace(
            self.span,
            first_layer=self.span.first_layer - share.first_layer,
            end_layer=self.span.end_layer - share.first_layer,
        )
        return HeadSpan(span, self.first_head - share.first_head, self.end_head - share.first_head)


@dataclass(frozen=True, slots=True, order=True)
class LinkChunk:
    """One chunk, as the model, the source rank and the target rank count its layers and heads; blocks count alike."""

    of_model: HeadSpan
    at_source: HeadSpan
    at_target: HeadSpan


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """What one link carries of every request: a range of layers x a range of KV heads, as the model counts them."""

    source: RankShare
    target: RankShare
    first_layer: int
    end_layer: int
    first_head: int
    end_head: int

    @property
    def ranks(self) -> tuple[int, int]:
        """(source rank, target rank): the name of the link."""
        return self.source.rank, self.target.rank

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.first_layer

    def group(self, span: Span, skip_blocks: int) -> HeadSpan | None:
        """What this link carries of a span that became ready; None: nothing.

        Args:
            span: layers as the model counts them (``RankShare.to_model``) x blocks of the request.
            skip_blocks: leading blocks that the target has already.
        """
        lacking = clip(span, skip_blocks)
        first, end = max(span.first_layer, self.first_layer), min(span.end_layer, self.end_layer)
        if lacking is None or first >= end:
            return None
        return HeadSpan(replace(lacking, first_layer=first, end_layer=end), self.first_head, self.end_head)

    def chunks(self, span: Span, skip_blocks: int, model: KVLayout, limit_bytes: int) -> Iterator[LinkChunk]:
        """Yield what ``group`` says in chunks of at most ``max_chunk_bytes``, in the order in which they move."""
        group = self.group(span, skip_blocks)
        if group is None:
            return
        for part in cut_group(group.span, self.wire_layout(model), limit_bytes):
            chunk = HeadSpan(part, self.first_head, self.end_head)
            yield LinkChunk(chunk, chunk.local_to(self.source), chunk.local_to(self.target))

    def max_chunk_bytes(self, model: KVLayout, limit_bytes: int) -> int:
        """Size of this link's largest chunk: the limit, but never less than its heads of one block of one layer."""
        return max(limit_bytes, self.wire_layout(model).block_layer_bytes)

    def wire_layout(self, model: KVLayout) -> KVLayout:
        """How its bytes lie, before they are coded: like a pool that has this link's heads only."""
        return replace(model, num_kv_heads=self.end_head - self.first_head)


def plan_routes(model: KVLayout, source: WorkerShape, target: WorkerShape) -> tuple[Route, ...]:
    """Every link between two workers that carries anything, by source rank, then target rank.

    Each (layer, KV head) comes to each target rank that holds it exactly once. Where it has several copies at the
    source, those ranks send as many layers as each other, give or take one (see ``_copy_layers``).

    Args:
        model: all layers and all KV heads of the model.

    Raises:
        ValueError: the model does not go into one of the shapes; the numbers are named.
    """
    targets = shares_of(target, model)
    found = (_route(ours, theirs) for ours in shares_of(source, model) for theirs in targets)
    return tuple(route for route in found if route is not None)


def _route(source: RankShare, target: RankShare) -> Route | None:
    first_head, end_head = max(source.first_head, target.first_head), min(source.end_head, target.end_head)
    first, end = _copy_layers(source, target)
    first_layer, end_layer = max(first, target.first_layer), min(end, target.end_layer)
    if first_head >= end_head or first_layer >= end_layer:
        return None
    return Route(source, target, first_layer, end_layer, first_head, end_head)


def _copy_layers(source: RankShare, target: RankShare) -> tuple[int, int]:
    """The source's layers ``[first, end)`` that it sends to this copy of the target's; maybe none.

    The source's layers, once for each copy that the target has, are laid end to end; each copy at the source sends an
    equal part of that line. With as many copies at both ends, each source copy sends all its layers to one target copy.
    """
    line = source.num_layers * target.num_copies
    start = source.num_layers * target.copy  # of this target copy on the line
    first = source.copy * line // source.num_copies - start
    end = (source.copy + 1) * line // source.num_copies - start
    return source.first_layer + max(first, 0), source.first_layer + min(end, source.num_layers)


@dataclass(frozen=True, slots=True)
class RequestBlocks:
    """Where one request's KV lies at both ends: ids of its blocks in order, the same on every rank of a worker."""

    num_tokens: int
    skip_blocks: int  # leading blocks that the target has in its prefix cache: in both lists, and never moved
    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def check(self, model: KVLayout) -> None:
        """Raise ValueError unless both lists hold the request once, and at least the last block moves."""
        num_blocks = model.num_blocks(self.num_tokens)
        for name, ids in (("source_ids", self.source_ids), ("target_ids", self.target_ids)):
            if len(ids) != num_blocks:
                raise ValueError(f"{name}: {len(ids)} blocks for {self.num_tokens} tokens, which take {num_blocks}")
            if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
                raise ValueError(f"{name}: a block is named twice, or negative")
        limit = max_skip_blocks(self.num_tokens, model.block_tokens)
        if not 0 <= self.skip_blocks <= limit:
            raise ValueError(
                f"skip_blocks is {self.skip_blocks}, and of {self.num_tokens} tokens must be in [0, {limit}]"
            )

    def source_blocks(self, chunk: LinkChunk) -> tuple[int, ...]:
        """The ids of a chunk's blocks at the source."""
        return self.source_ids[chunk.of_model.span.first_block : chunk.of_model.span.end_block]

    def target_blocks(self, chunk: LinkChunk) -> tuple[int, ...]:
        """The ids of a chunk's blocks at the target."""
        return self.target_ids[chunk.of_model.span.first_block : chunk.of_model.span.end_block]


def chunks_by_link(
    model: KVLayout, source: WorkerShape, target: WorkerShape, blocks: RequestBlocks, limit_bytes: int
) -> dict[tuple[int, int], tuple[LinkChunk, ...]]:
    """The exact chunks that each link (source rank, target rank) moves when a whole request is ready at once, in order.

    Raises:
        ValueError: the model does not go into a shape, or the blocks are not those of such a request.
    """
    blocks.check(model)
    whole = Span(0, model.num_layers, 0, model.num_blocks(blocks.num_tokens))
    return {
        route.ranks: tuple(route.chunks(whole, blocks.skip_blocks, model, limit_bytes))
        for route in plan_routes(model, source, target)
    }
