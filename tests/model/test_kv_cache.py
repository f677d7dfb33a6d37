import threading

import numpy as np
import pytest
import torch

from twinpool.core.errors import SpecError
from twinpool.model.host_pool import map_pool
from twinpool.model.kv_cache import TorchKVCache, count_blocks
from twinpool.model.kv_layout import KVLayout


def layout(dtype="float32", **changes):
    sizes = {"num_layers": 5, "num_kv_heads": 3, "block_tokens": 4, "head_dim": 6, "model": "m"} | changes
    return KVLayout(dtype=dtype, **sizes)


def filled(dtype="float32", num_blocks=11):
    cache = TorchKVCache(layout(dtype), num_blocks)
    cache.tensor.copy_(torch.arange(cache.tensor.numel()).view_as(cache.tensor) % 251)
    return cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("first", "end"), [(0, 5), (0, 1), (4, 5), (1, 3)])
def test_gather_copies_blocks_in_the_order_of_the_wire(dtype, first, end):
    cache, ids = filled(dtype), np.array([7, 0, 10, 3])
    wanted = cache.tensor[torch.from_numpy(ids), first:end].contiguous().view(torch.uint8).flatten().numpy()
    out = np.empty(len(ids) * (end - first) * cache.layout.block_layer_bytes, dtype=np.uint8)
    cache.gather(first, end, ids, out)
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scatter_undoes_gather_and_touches_nothing_else(dtype):
    cache, target = filled(dtype), TorchKVCache(layout(dtype), 11)
    target.tensor.fill_(torch.nan)
    data = np.empty(2 * 2 * cache.layout.block_layer_bytes, dtype=np.uint8)
    cache.gather(1, 3, np.array([4, 9]), data)
    data.flags.writeable = False  # as bytes from a socket are
    target.scatter(1, 3, np.array([8, 2]), data)
    assert torch.equal(target.tensor[[8, 2], 1:3], cache.tensor[[4, 9], 1:3])
    target.tensor[[8, 2], 1:3] = torch.nan
    assert target.tensor.isnan().all()


@pytest.mark.parametrize(("first", "end"), [(0, 5), (1, 4), (4, 5)])
def test_large_runs_and_small_ones_are_copied_alike(first, end):
    large = layout(num_kv_heads=4, block_tokens=64, head_dim=128)  # 256 KiB a layer: large from two layers on
    source, target = TorchKVCache(large, 6), TorchKVCache(large, 6)
    source.tensor.copy_(torch.randn(source.tensor.shape, generator=torch.Generator().manual_seed(0)))
    target.tensor.fill_(torch.nan)
    data = np.empty(3 * (end - first) * large.block_layer_bytes, dtype=np.uint8)
    source.gather(first, end, np.array([5, 0, 5]), data)
    assert np.array_equal(data, source.tensor[[5, 0, 5], first:end].contiguous().view(torch.uint8).flatten().numpy())
    data.flags.writeable = False
    target.scatter(first, end, np.array([1, 4, 2]), data)
    assert torch.equal(target.tensor[[1, 4, 2], first:end], source.tensor[[5, 0, 5], first:end])
    target.tensor[[1, 4, 2], first:end] = torch.nan
    assert target.tensor.isnan().all()


@pytest.mark.parametrize(
    ("first", "end", "ids", "nbytes", "complaint"),
    [
        (0, 6, [0], 6, r"layers \[0, 6\) are not in \[0, 5\)"),
        (2, 2, [0], 0, r"layers \[2, 2\)"),
        (-1, 1, [0], 2, r"layers \[-1, 1\)"),
        (0, 1, [11], 1, r"block ids are none, or not all in \[0, 11\)"),
        (0, 1, [-1], 1, r"block ids"),
        (0, 1, [], 0, r"block ids"),
        (0, 1, [0, 1], 1, r"need \d+ contiguous bytes"),
    ],
)
def test_a_span_that_does_not_fit_is_refused_and_nothing_is_copied(first, end, ids, nbytes, complaint):
    cache = filled()
    before = cache.tensor.clone()
    data = np.zeros(nbytes * cache.layout.block_layer_bytes, dtype=np.uint8)
    for copy in (cache.gather, cache.scatter):
        with pytest.raises(ValueError, match=complaint):
            copy(first, end, np.array(ids, dtype=np.int64), data)
    assert torch.equal(cache.tensor, before)


def test_data_that_is_not_contiguous_bytes_is_refused():
    cache = filled()
    size = cache.layout.block_layer_bytes
    for data in (np.zeros(2 * size, np.uint8)[::2], np.zeros(size, np.int8), np.zeros((1, size), np.uint8)):
        with pytest.raises(ValueError, match="contiguous bytes"):
            cache.scatter(0, 1, np.array([0]), data)


def test_a_pool_made_by_one_thread_is_written_by_another_even_after_inference():
    cache = TorchKVCache(layout(), 4)
    with torch.inference_mode():
        cache.tensor.zero_()
    data = np.full(cache.layout.block_bytes, 7, dtype=np.uint8)
    thread = threading.Thread(target=cache.scatter, args=(0, 5, np.array([2]), data))
    thread.start()
    thread.join(timeout=10)
    out = np.empty_like(data)
    cache.gather(0, 5, np.array([2]), out)
    assert np.array_equal(out, data)


def test_a_shared_pool_holds_what_a_plain_one_does():
    plain, shared = filled(), TorchKVCache(layout(), 11, shared=True)
    shared.tensor.copy_(plain.tensor)
    assert plain.shared is None
    assert shared.shared.blocks.shape == (11, 5, layout().block_layer_bytes)
    assert np.array_equal(map_pool(shared.shared.fd), plain.tensor.view(torch.uint8).flatten().numpy())
    data = np.full(layout().block_bytes, 7, dtype=np.uint8)
    shared.scatter(0, 5, np.array([2]), data)
    assert (shared.shared.blocks[2] == 7).all()
    assert torch.equal(shared.tensor[3:], plain.tensor[3:])


def test_blocks_are_counted_by_whole_ones():
    size = layout().block_bytes
    assert [count_blocks(layout(), size * 3 + extra) for extra in (-1, 0, 1)] == [2, 3, 3]
    with pytest.raises(SpecError, match=rf"kv\.memory: {size - 1} bytes hold no block; one block .* is {size}"):
        count_blocks(layout(), size - 1)


def test_memory_that_cannot_be_had_is_refused_by_name():
    with pytest.raises(SpecError, match=r"kv\.memory: cannot allocate \d+ bytes on cpu"):
        TorchKVCache(layout(), 2**46)


def test_shared_memory_that_cannot_be_had_is_refused_by_name():
    with pytest.raises(SpecError, match=r"kv\.memory: cannot allocate \d+ bytes"):
        TorchKVCache(layout(), 2**46, shared=True)


@pytest.mark.parametrize("memory", [100_000, 99_999, 65_536, 1_000_001])
def test_a_worker_keeps_as_much_kv_as_it_was_given_rounded_down_to_whole_blocks(write_llama, load_driver, memory):
    cache = load_driver(write_llama(), kv_bytes=memory).runner.cache
    assert cache.tensor.nbytes == memory - memory % cache.layout.block_bytes
    assert cache.num_blocks == memory // cache.layout.block_bytes > 1
