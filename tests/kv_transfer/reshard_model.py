"""KV of a request in the pools of workers of any shape, element by element: what chunks are held to."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from twinpool.kv_transfer.rank_shape import WorkerShape
from twinpool.kv_transfer.reshard import HeadSpan, LinkChunk, RequestBlocks
from twinpool.model.kv_layout import KVLayout

NEVER_WRITTEN = -1
Numbers = NDArray[np.int64]


def build_model(num_layers: int, num_kv_heads: int, block_tokens: int = 2, head_dim: int = 1) -> KVLayout:
    return KVLayout(num_layers, num_kv_heads, block_tokens, head_dim, dtype="bfloat16", model="m")


def build_blocks(model: KVLayout, num_tokens: int, skip_blocks: int) -> RequestBlocks:
    """Scattered, different at both ends, and with blocks of others between them."""
    num_blocks = model.num_blocks(num_tokens)
    source = tuple((3 * i + 1) % (3 * num_blocks) for i in range(num_blocks))
    target = tuple(2 * (num_blocks - 1 - i) for i in range(num_blocks))
    return RequestBlocks(num_tokens, skip_blocks, source, target)


def fits(shape: WorkerShape, model: KVLayout) -> bool:
    heads, ranks = model.num_kv_heads, shape.tensor_parallel
    return (heads % ranks == 0 or ranks % heads == 0) and model.num_layers >= shape.pipeline_parallel


def elements(model: KVLayout, num_blocks: int) -> Numbers:
    """A number of its own for each (block, layer, k/v, head, token, dim) of a request."""
    shape = (num_blocks, model.num_layers, 2, model.num_kv_heads, model.block_tokens, model.head_dim)
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def held_by(shape: WorkerShape, model: KVLayout) -> list[tuple[list[int], list[int]]]:
    """By rank: the layers and the heads it holds, dealt out one by one."""
    stage_sizes = [0] * shape.pipeline_parallel
    for layer in range(model.num_layers):
        stage_sizes[layer % shape.pipeline_parallel] += 1
    copies = max(1, shape.tensor_parallel // model.num_kv_heads)
    slots = [head for head in range(model.num_kv_heads) for _ in range(copies)]
    per_rank = len(slots) // shape.tensor_parallel
    held, layers = [], list(range(model.num_layers))
    for size in stage_sizes:
        mine, layers = layers[:size], layers[size:]
        held += [(mine, slots[i : i + per_rank]) for i in range(0, len(slots), per_rank)]
    return held


class Pools:
    """The pools of a worker's ranks, and how often each element was written."""

    def __init__(self, shape: WorkerShape, model: KVLayout, num_blocks: int) -> None:
        self.held = held_by(shape, model)
        sizes = [
            (num_blocks, len(layers), 2, len(heads), model.block_tokens, model.head_dim) for layers, heads in self.held
        ]
        self.values = [np.full(size, NEVER_WRITTEN, dtype=np.int64) for size in sizes]
        self.writes = [np.zeros(size, dtype=np.int64) for size in sizes]

    def fill(self, kv: Numbers, block_ids: Iterable[int]) -> None:
        """Put a request's KV there, without its being counted."""
        ids = list(block_ids)
        for values, (layers, heads) in zip(self.values, self.held, strict=True):
            values[ids] = kv[: len(ids), layers][:, :, :, heads]

    def read(self, rank: int, part: HeadSpan, block_ids: Iterable[int]) -> Numbers:
        """The bytes on the wire."""
        return self.values[rank][_index(part, block_ids)].copy().ravel()

    def write(self, rank: int, part: HeadSpan, block_ids: Iterable[int], data: Numbers) -> None:
        index = _index(part, block_ids)
        self.values[rank][index] = data.reshape(self.values[rank][index].shape)
        self.writes[rank][index] += 1


def _index(part: HeadSpan, block_ids: Iterable[int]) -> tuple[Numbers, ...]:
    layers = np.arange(part.span.first_layer, part.span.end_layer)
    heads = np.arange(part.first_head, part.end_head)
    assert min(layers) >= 0
    assert min(heads) >= 0
    return np.ix_(list(block_ids), layers, [0, 1], heads)


class Worlds:
    """A source that holds a request, and a target that holds its first blocks."""

    def __init__(self, model: KVLayout, source: WorkerShape, target: WorkerShape, blocks: RequestBlocks) -> None:
        num_blocks = len(blocks.source_ids)
        self.model, self.blocks = model, blocks
        self.kv = elements(model, num_blocks)
        self.source = Pools(source, model, max(blocks.source_ids) + 2)
        self.target = Pools(target, model, max(blocks.target_ids) + 2)
        self.source.fill(self.kv, blocks.source_ids)
        self.target.fill(self.kv, blocks.target_ids[: blocks.skip_blocks])

    def move(self, ranks: tuple[int, int], chunk: LinkChunk) -> None:
        data = self.source.read(ranks[0], chunk.at_source, self.blocks.source_blocks(chunk))
        assert NEVER_WRITTEN not in data
        assert data.size * 2 == chunk.of_model.num_bytes(self.model) > 0
        self.target.write(ranks[1], chunk.at_target, self.blocks.target_blocks(chunk), data)

    def check_complete(self) -> None:
        """Every needed element is there and was moved once, and nothing else was written."""
        ids, moved = list(self.blocks.target_ids), list(self.blocks.target_ids[self.blocks.skip_blocks :])
        for values, writes, (layers, heads) in zip(
            self.target.values, self.target.writes, self.target.held, strict=True
        ):
            np.testing.assert_array_equal(values[ids], self.kv[:, layers][:, :, :, heads])
            assert (writes[moved] == 1).all()
            assert writes.sum() == writes[moved].size
            others = np.delete(values, ids, axis=0)
            assert (others == NEVER_WRITTEN).all()
