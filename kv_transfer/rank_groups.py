"""Divides a group of a whole worker's KV among the links between the ranks of two workers, whose shapes may differ.

Each end divides by itself, from the same values, and both come to the same chunks and sizes. Pure: opens no link, knows
no clock, and touches no block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from twinpool.kv_transfer.link import Group, SourcePlace
from twinpool.kv_transfer.rank_shape import RankShare, WorkerShape, shares_of
from twinpool.kv_transfer.reshard import HeadSpan, Route, plan_routes
from twinpool.model.kv_layout import HeadRange, KVCache, KVLayout

Ranks = tuple[int, int]  # of the source and of the target: the name of a link


@dataclass(frozen=True, slots=True)
class RankGroups:
    """What moves on each link between two workers of one model; see ``between``."""

    model: KVLayout
    routes: tuple[Route, ...]
    source_layouts: tuple[KVLayout, ...]  # of each rank's pool
    target_layouts: tuple[KVLayout, ...]

    @classmethod
    def between(cls, model: KVLayout, source: WorkerShape, target: WorkerShape) -> "RankGroups":
        """Plan for two shapes.

        Args:
            model: all layers and all KV heads of the model.

        Raises:
            ValueError: the model does not go into one of the shapes; the numbers are named.
        """
        layouts = [tuple(share.layout(model) for share in shares_of(shape, model)) for shape in (source, target)]
        return cls(model, plan_routes(model, source, target), *layouts)

    @property
    def links(self) -> tuple[Ranks, ...]:
        """The links that carry anything, by source rank, then target rank."""
        return tuple(route.ranks for route in self.routes)

    @property
    def wire_layouts(self) -> tuple[KVLayout, ...]:
        """How bytes lie on each link before they are coded: a codec must fit all of them."""
        return tuple(route.wire_layout(self.model) for route in self.routes)

    def check_caches(self, sources: Sequence[KVCache], targets: Sequence[KVCache]) -> None:
        """Raise ValueError unless each rank's cache, in the order of ranks, holds what its worker's shape says."""
        for end, caches, layouts in (
            ("source", sources, self.source_layouts),
            ("target", targets, self.target_layouts),
        ):
            if len(caches) != len(layouts):
                raise ValueError(f"{len(caches)} caches for the {len(layouts)} ranks of the {end}")
            for rank, (cache, layout) in enumerate(zip(caches, layouts, strict=True)):
                if cache.layout != layout:
                    raise ValueError(f"{end} rank {rank}: the cache is of {cache.layout}, and must be of {layout}")

    def at_source(self, group: Group) -> Iterator[tuple[Ranks, Group]]:
        """Divide what a source announces into what each of its ranks gives to each link; nothing where nothing moves.

        Args:
            group: with layers as the model counts them, all heads, and the ids of the span's blocks, which are the
                same on every rank of a worker. Its ``seq`` goes on every link that takes part.
        """
        for route, part in self._parts(group):
            yield route.ranks, _local(group, part, route.source)

    def at_target(self, group: Group) -> Iterator[tuple[Ranks, Group]]:
        """Divide the same group, as the target expects it, into what each of its ranks takes from each link."""
        for route, part in self._parts(group):
            there = part.local_to(route.source)
            heads = HeadRange(there.first_head, there.end_head)
            place = SourcePlace(self.source_layouts[route.source.rank], there.span.first_layer, heads)
            yield route.ranks, replace(_local(group, part, route.target), source=place)

    def link_bytes(self, group: Group) -> int:
        """Bytes on all links together, as coded, headers not counted.

        Raises:
            ValueError: the codec does not fit what a link carries.
        """
        return sum(
            group.coding.num_bytes(part.span, route.wire_layout(self.model)) for route, part in self._parts(group)
        )

    def _parts(self, group: Group) -> Iterator[tuple[Route, HeadSpan]]:
        for route in self.routes:
            part = route.group(group.span, 0)
            if part is not None:
                yield route, part


def _local(group: Group, part: HeadSpan, share: RankShare) -> Group:
    own = part.local_to(share)
    return replace(group, span=own.span, heads=HeadRange(own.first_head, own.end_head))
