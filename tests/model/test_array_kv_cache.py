"""The numpy cache and the torch one hold and move the same bytes."""

import numpy as np
import pytest
import torch

from twinpool.core.errors import SpecError
from twinpool.model.array_kv_cache import ArrayKVCache
from twinpool.model.host_pool import map_pool
from twinpool.model.kv_cache import TorchKVCache
from twinpool.model.kv_layout import HeadRange, KVLayout

SMALL = KVLayout(num_layers=3, num_kv_heads=4, block_tokens=4, head_dim=4, dtype="float32", model="m")
LARGE = KVLayout(
    num_layers=3, num_kv_heads=4, block_tokens=64, head_dim=64, dtype="bfloat16", model="m"
)  # 8 KiB a head
CASES = [
    (0, 3, None),
    (1, 3, HeadRange(0, 4)),
    (0, 3, HeadRange(1, 3)),
    (2, 3, HeadRange(3, 4)),
    (0, 1, HeadRange(0, 1)),
]
Cache = ArrayKVCache | TorchKVCache


def bytes_of(cache: Cache) -> np.ndarray:
    if isinstance(cache, ArrayKVCache):
        return cache.bytes
    return cache.tensor.view(torch.uint8).numpy().reshape(cache.num_blocks, cache.layout.num_layers, -1)


def make(kind: type[Cache], layout: KVLayout, seed: int) -> Cache:
    cache = kind(layout, 7)
    bytes_of(cache)[:] = np.random.default_rng(seed).integers(0, 256, bytes_of(cache).shape, dtype=np.uint8)
    return cache


def by_loops(data: np.ndarray, layout: KVLayout, first: int, end: int, ids: list[int], heads: HeadRange) -> list[bytes]:
    """What is on the wire, head by head."""
    size = layout.block_layer_bytes // (2 * layout.num_kv_heads)
    at = [(half * layout.num_kv_heads + head) * size for half in (0, 1) for head in range(heads.first, heads.end)]
    return [
        data[block, layer, start : start + size].tobytes()
        for block in ids
        for layer in range(first, end)
        for start in at
    ]


@pytest.mark.parametrize("kind", [ArrayKVCache, TorchKVCache])
@pytest.mark.parametrize("layout", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("first", "end", "heads"), CASES)
def test_heads_are_gathered_in_the_order_of_the_wire_and_scattered_nowhere_else(
    kind: type[Cache], layout: KVLayout, first: int, end: int, heads: HeadRange | None
) -> None:
    source, target, some = make(kind, layout, 1), make(kind, layout, 2), heads or HeadRange(0, 4)
    out = np.empty(3 * (end - first) * layout.of_heads(heads).block_layer_bytes, np.uint8)
    source.gather(first, end, np.array([5, 0, 3]), out, heads)
    wire = by_loops(bytes_of(source), layout, first, end, [5, 0, 3], some)
    assert out.tobytes() == b"".join(wire)
    expected, parts = bytes_of(target).copy(), iter(wire)
    size = len(wire[0])
    for block in (2, 6, 4):
        for layer in range(first, end):
            for half in (0, 1):
                for head in range(some.first, some.end):
                    start = (half * 4 + head) * size
                    expected[block, layer, start : start + size] = np.frombuffer(next(parts), np.uint8)
    out.flags.writeable = False
    target.scatter(first, end, np.array([2, 6, 4]), out, heads)
    assert np.array_equal(bytes_of(target), expected)


@pytest.mark.parametrize("kind", [ArrayKVCache, TorchKVCache])
def test_heads_that_a_cache_has_not_are_refused(kind: type[Cache]) -> None:
    cache, data = make(kind, SMALL, 1), np.zeros(SMALL.block_bytes, np.uint8)
    for copy in (cache.gather, cache.scatter):
        with pytest.raises(ValueError, match=r"KV heads \[2, 5\)"):
            copy(0, 3, np.array([0]), data, HeadRange(2, 5))


def test_memory_can_be_shown_to_others_or_is_refused_by_name() -> None:
    cache = ArrayKVCache(SMALL, 7, shared=True)
    cache.bytes[3] = 9
    assert cache.shared is not None
    assert np.array_equal(map_pool(cache.shared.fd), cache.bytes.ravel())
    with pytest.raises(SpecError, match=r"kv\.memory: "):
        ArrayKVCache(SMALL, 2**50)
