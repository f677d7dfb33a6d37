"""Copies between pools: the bytes, the digest, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.header import data_digest
from twinpool.kv_transfer.shm_copy import Part, copy_blocks, digest_blocks

RUNS = [(3, 100), (3, 4096), (4, 8192)]  # layers, and bytes of one: staged, staged if few, and not


def make_pool(num_layers: int, layer_bytes: int, seed: int) -> Part:
    return np.random.default_rng(seed).integers(0, 256, (9, num_layers, 2, layer_bytes // 2), dtype=np.uint8)


@given(st.data(), st.sampled_from(RUNS), st.booleans())
def test_blocks_arrive_in_order_and_nothing_else_changes(
    data: st.DataObject, run: tuple[int, int], digest: bool
) -> None:
    source, target = make_pool(*run, seed=1), make_pool(*run, seed=2)
    first = data.draw(st.integers(0, run[0] - 1))
    layers = (first, data.draw(st.integers(first + 1, run[0])))
    ids = st.lists(st.integers(0, 8), min_size=1, max_size=9, unique=True)
    there = np.array(data.draw(ids))
    here = np.array(data.draw(st.lists(st.integers(0, 8), min_size=len(there), max_size=len(there))))
    expected = target.copy()
    expected[there, slice(*layers)] = source[here, slice(*layers)]
    found = copy_blocks(source[:, slice(*layers)], here, target[:, slice(*layers)], there, digest=digest)
    assert np.array_equal(target, expected)
    assert found == (data_digest(source[here, slice(*layers)].reshape(-1)) if digest else b"")


@pytest.mark.parametrize("run", RUNS)
def test_both_ends_take_the_same_digest(run: tuple[int, int]) -> None:
    source, target = make_pool(*run, seed=1), make_pool(*run, seed=2)
    here, there = np.array([4, 4, 0]), np.array([8, 1, 2])
    digest = copy_blocks(source, here, target, there, digest=True)
    assert digest_blocks(source, here) == digest == digest_blocks(target, there)
    source[4, 0, 0, 0] ^= 1
    assert digest_blocks(source, here) != digest


def test_a_great_many_small_blocks_go_through_staging_in_parts() -> None:
    source = np.random.default_rng(1).integers(0, 256, (4000, 1, 2, 350), dtype=np.uint8)
    target = np.zeros_like(source)
    order = np.random.default_rng(2).permutation(4000)
    digest = copy_blocks(source, order, target, order[::-1].copy(), digest=True)
    assert np.array_equal(target[order[::-1]], source[order])
    assert digest == data_digest(source[order].reshape(-1)) == digest_blocks(source, order)


@pytest.mark.parametrize("digest", [True, False])
def test_large_blocks_are_copied_and_digested_to_their_last_byte(digest: bool) -> None:
    source, target = make_pool(3, 600_002, seed=1), make_pool(3, 600_002, seed=2)  # not a multiple of any piece
    before, here, there = target.copy(), np.array([4, 0]), np.array([8, 1])
    found = copy_blocks(source[:, 1:], here, target[:, 1:], there, digest=digest)
    assert found == (data_digest(source[here, 1:3].reshape(-1)) if digest else b"")
    before[there, 1:3] = source[here, 1:3]
    assert np.array_equal(target, before)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("here", "there"), [([9], [0]), ([-1], [0]), ([0], [9]), ([0], [-1]), ([0, 1], [0])])
def test_ids_outside_a_pool_are_refused_and_nothing_is_copied(
    run: tuple[int, int], here: list[int], there: list[int]
) -> None:
    source, target = make_pool(*run, seed=1), make_pool(*run, seed=2)
    before = target.copy()
    with pytest.raises(ValueError, match="block"):
        copy_blocks(source, np.array(here), target, np.array(there), digest=True)
    assert np.array_equal(target, before)


@given(st.data(), st.sampled_from([128, 32768]), st.booleans())
def test_slices_of_heads_are_copied_between_pools_that_hold_different_heads(
    data: st.DataObject, head_bytes: int, digest: bool
) -> None:
    source, target = make_pool(3, 8 * head_bytes, seed=1), make_pool(3, 4 * head_bytes, seed=2)
    heads = data.draw(st.integers(1, 2))
    here, there = data.draw(st.integers(0, 4 - heads)), data.draw(st.integers(0, 2 - heads))
    theirs = source[:, 1:3, :, here * head_bytes : (here + heads) * head_bytes]
    before, ours = target.copy(), target[:, 0:2, :, there * head_bytes : (there + heads) * head_bytes]
    found = copy_blocks(theirs, np.array([4, 0]), ours, np.array([8, 1]), digest=digest)
    assert found == (data_digest(theirs[[4, 0]].reshape(-1)) if digest else b"")
    assert digest_blocks(theirs, np.array([4, 0])) == digest_blocks(ours, np.array([8, 1]))
    before[[8, 1], 0:2, :, there * head_bytes : (there + heads) * head_bytes] = theirs[[4, 0]]
    assert np.array_equal(target, before)


def test_parts_of_different_shapes_are_refused() -> None:
    pool = make_pool(3, 100, seed=1)
    with pytest.raises(ValueError, match="1 blocks"):
        copy_blocks(pool, np.array([0]), pool[..., :20].copy(), np.array([0]), digest=False)
