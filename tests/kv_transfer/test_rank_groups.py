"""Workers of any shapes hand over every element, over real links: checked one by one against a model of loops."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coder import Coder, aligned_bytes
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.link import Group, SourcePlace
from twinpool.kv_transfer.plan import Span, clip, spans_of_chunk
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.rank_shape import WorkerShape, shares_of
from twinpool.model.array_kv_cache import ArrayKVCache
from twinpool.model.kv_layout import HeadRange, KVLayout

from .conformance_kinds import KINDS, Setting
from .fakes import WAIT_S, Ears, NumpyCache
from .reshard_model import held_by

MODEL = KVLayout(num_layers=5, num_kv_heads=4, block_tokens=4, head_dim=16, dtype="float32", model="m")
TWO_HEADS = replace(MODEL, num_kv_heads=2)  # four ranks: each head twice
NUM_TOKENS = 22  # the sixth block is partial
SKIP = 2
SOURCE_IDS, TARGET_IDS = [7, 0, 3, 9, 4, 1], [2, 8, 5, 1, 0, 6]
NUM_BLOCKS = 10
NEVER_WRITTEN = np.float32(-7.0)
SHAPES = {
    "1->2": (WorkerShape(1), WorkerShape(2)),
    "2->1": (WorkerShape(2), WorkerShape(1)),
    "2->4": (WorkerShape(2), WorkerShape(4)),
    "4->2": (WorkerShape(4), WorkerShape(2)),
    "1->1": (WorkerShape(1), WorkerShape(1)),
    "4->4": (WorkerShape(4), WorkerShape(4)),
    "stages 1->2": (WorkerShape(2, 1), WorkerShape(1, 2)),
    "stages 2->1": (WorkerShape(1, 2), WorkerShape(4, 1)),
}
Numbers = NDArray[np.float32]


def make_kv(model: KVLayout) -> Numbers:
    """Of a request: [block, layer, 2, head, token, dim], every element a number of its own."""
    shape = (6, model.num_layers, 2, model.num_kv_heads, model.block_tokens, model.head_dim)
    values = np.random.default_rng(3).permutation(np.prod(shape)).astype(np.float32)
    return (values - values.mean()).reshape(shape)


def as_decoded(kv: Numbers, model: KVLayout, coding: Coding) -> Numbers:
    """What a worker of one rank would have of the blocks that move: no codec looks beyond one head of one layer."""
    if coding.is_raw:
        return kv
    moved, span, coder = kv[SKIP:], Span(0, model.num_layers, SKIP, 6), Coder()
    raw, coded = coder.raw(span, model), aligned_bytes(coding.num_bytes(span, model))
    raw[:] = np.ascontiguousarray(moved).view(np.uint8).reshape(-1)
    coder.encode(coding, span, model, raw, coded)
    after = coder.decode(coding, span, model, coded).view(np.float32).reshape(moved.shape)
    return np.concatenate([kv[:SKIP], after])


@dataclass
class Rank:
    """One rank's pool, as bytes for links and as numbers for loops."""

    cache: NumpyCache
    held: tuple[list[int], list[int]]  # layers and heads

    @property
    def numbers(self) -> Numbers:
        layout = self.cache.layout
        shape = (NUM_BLOCKS, layout.num_layers, 2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
        return self.cache.pool.view(np.float32).reshape(shape)

    def elements(self, kv: Numbers, block_ids: list[int], first_block: int, end_block: int) -> Any:
        """(where in the numbers, what should be there), one by one, as far as this rank holds it."""
        for block, (i, layer), half, (j, head) in product(
            range(first_block, end_block), enumerate(self.held[0]), (0, 1), enumerate(self.held[1])
        ):
            yield (block_ids[block], i, half, j), kv[block, layer, half, head]


def make_ranks(shape: WorkerShape, model: KVLayout, *, shared: bool) -> list[Rank]:
    ranks = []
    for held in held_by(shape, model):
        layout = replace(model, num_layers=len(held[0]), num_kv_heads=len(held[1]))
        ranks.append(Rank(NumpyCache(NUM_BLOCKS, layout=layout, shared=shared), held))
        ranks[-1].numbers[:] = NEVER_WRITTEN
    return ranks


class Handover:
    """Every link between the ranks of two workers, open."""

    def __init__(self, kind: str, shapes: tuple[WorkerShape, WorkerShape], model: KVLayout) -> None:
        self.groups = RankGroups.between(model, *shapes)
        shared = KINDS[kind].shares_memory
        self.sources, self.targets = (make_ranks(shape, model, shared=shared) for shape in shapes)
        self.groups.check_caches([rank.cache for rank in self.sources], [rank.cache for rank in self.targets])
        here, there = Setting(0), Setting(1)
        there.network = here.network
        self.ends: dict[tuple[int, int], tuple[Any, Ears, Any, Ears]] = {}
        for source, target in self.groups.links:
            sent, received = Ears(), Ears()
            receiver, ticket = KINDS[kind].make(self.targets[target].cache, there).listen(received)
            sender = KINDS[kind].make(self.sources[source].cache, here).dial(ticket, sent)
            self.ends[source, target] = sender, sent, receiver, received

    def move(self, group: Group) -> int:
        """Have the group cross all links; the answer is how many it took."""
        ids = group.span.first_block, group.span.end_block
        at_source = replace(group, block_ids=np.array(SOURCE_IDS[slice(*ids)], np.int64))
        at_target = replace(group, block_ids=np.array(TARGET_IDS[slice(*ids)], np.int64))
        incoming, outgoing = dict(self.groups.at_target(at_target)), dict(self.groups.at_source(at_source))
        assert list(incoming) == list(outgoing)
        for ranks, part in incoming.items():
            self.ends[ranks][2].receive(part)
        for ranks, part in outgoing.items():
            self.ends[ranks][0].send(part)
        for ranks in incoming:
            assert self.ends[ranks][3].until("received") == ("received", group.seq, True)
        return len(incoming)

    def close(self) -> None:
        for sender, _, receiver, _ in self.ends.values():
            sender.close()
            receiver.close()
        for sender, _, receiver, _ in self.ends.values():
            assert sender.join(WAIT_S)
            assert receiver.join(WAIT_S)


def hand_over(kind: str, shapes: tuple[WorkerShape, WorkerShape], model: KVLayout, codec: CodecName) -> None:
    coding, kv, handover = Coding.of(codec, NUM_TOKENS), make_kv(model), Handover(kind, shapes, model)
    for rank in handover.sources:
        for where, values in rank.elements(kv, SOURCE_IDS, 0, 6):
            rank.numbers[where] = values
    try:
        stages = {share.first_layer: share for share in shares_of(shapes[0], model)}.values()
        number = 0
        for before, after in ((0, 13), (13, NUM_TOKENS)):  # two steps of a prefill, each stage in two layer groups
            for share in stages:
                layers = ((0, 1), (1, share.num_layers))
                for local in spans_of_chunk(before, after, after == NUM_TOKENS, model.block_tokens, layers):
                    span = clip(share.to_model(local), SKIP)
                    if span is not None:
                        assert handover.move(Group("r", 1, number, span, None, coding)) > 0
                        number += 1
    finally:
        handover.close()
    expected = as_decoded(kv, model, coding)
    for rank in handover.targets:
        wanted = np.full_like(rank.numbers, NEVER_WRITTEN)
        for where, values in rank.elements(expected, TARGET_IDS, SKIP, 6):
            wanted[where] = values
        np.testing.assert_array_equal(rank.numbers, wanted)


@pytest.mark.parametrize("codec", [CodecName.RAW, CodecName.INT8, CodecName.INT4])
@pytest.mark.parametrize("model", [MODEL, TWO_HEADS], ids=["divided", "replicated"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_element_that_is_lacking_arrives_and_nothing_else_is_written(
    shapes: tuple[WorkerShape, WorkerShape], model: KVLayout, codec: CodecName
) -> None:
    hand_over("memory", shapes, model, codec)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gloo", "shm", "strict-nccl"])  # whose two ends may be in one process
@pytest.mark.parametrize("shapes", ["1->2", "4->2", "stages 1->2", "stages 2->1"])
def test_so_it_is_over_every_kind_of_link(kind: str, shapes: str) -> None:
    hand_over(kind, SHAPES[shapes], TWO_HEADS if shapes == "4->2" else MODEL, CodecName.RAW)
    if not KINDS[kind].shares_memory:
        hand_over(kind, SHAPES[shapes], MODEL, CodecName.INT8)


@pytest.mark.slow
@pytest.mark.parametrize(("num_heads", "told"), [(3, "not of blocks"), (20, "offers what it has not")])
def test_a_source_whose_pool_is_not_of_the_shape_it_should_have_loses_its_link(num_heads: int, told: str) -> None:
    """Only where the target copies out of it: nobody else reads the source's pool by its layout."""
    layout = replace(MODEL, num_kv_heads=2)
    source, target = (NumpyCache(NUM_BLOCKS, seed, layout, shared=True) for seed in (1, 2))
    before, sent, received = target.pool.copy(), Ears(), Ears()
    receiver, ticket = KINDS["shm"].make(target, Setting(1)).listen(received)
    sender = KINDS["shm"].make(source, Setting(0)).dial(ticket, sent)
    group = Group("r", 1, 0, Span(0, 2, 0, 1), np.array([3]))
    place = SourcePlace(replace(MODEL, num_kv_heads=num_heads), 0, HeadRange(0, 2))
    receiver.receive(replace(group, source=place))
    sender.send(group)
    assert told in str(received.until("error"))
    assert np.array_equal(target.pool, before)
    for end in (sender, receiver):
        end.close()
        assert end.join(WAIT_S)


def test_a_rank_whose_cache_is_not_of_its_share_is_named() -> None:
    groups = RankGroups.between(MODEL, WorkerShape(1), WorkerShape(2))
    whole, half = ArrayKVCache(MODEL, 1), ArrayKVCache(replace(MODEL, num_kv_heads=2), 1)
    groups.check_caches([whole], [half, half])
    with pytest.raises(ValueError, match="target rank 1: the cache is of"):
        groups.check_caches([whole], [half, whole])
    with pytest.raises(ValueError, match="1 caches for the 2 ranks of the target"):
        groups.check_caches([whole], [half])


def test_a_link_that_has_no_layer_of_a_group_takes_no_part_in_it() -> None:
    groups = RankGroups.between(MODEL, WorkerShape(1, 2), WorkerShape(2, 1))
    first_stage = Group("r", 1, 0, Span(0, 2, 0, 6), np.arange(6))
    assert [ranks for ranks, _ in groups.at_source(first_stage)] == [(0, 0), (0, 1)]
    assert groups.links == ((0, 0), (0, 1), (1, 0), (1, 1))


@pytest.mark.parametrize("codec", [CodecName.RAW, CodecName.INT8])
def test_links_carry_each_byte_once_unless_target_ranks_hold_copies(codec: CodecName) -> None:
    group = Group("r", 1, 0, Span(0, 5, 0, 6), np.arange(6), Coding.of(codec, NUM_TOKENS))
    one = RankGroups.between(TWO_HEADS, WorkerShape(1), WorkerShape(1)).link_bytes(group)
    for shapes, times in (((1, 2), 1), ((2, 1), 1), ((4, 2), 1), ((2, 4), 2)):
        groups = RankGroups.between(TWO_HEADS, *map(WorkerShape, shapes))
        assert groups.link_bytes(group) == times * one
    assert {layout.num_kv_heads for layout in groups.wire_layouts} == {1}
