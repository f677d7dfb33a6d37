"""Deterministic attention: its definition, and the same bits in any company and however a prompt is cut."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.kernels.deterministic_attention import KEY_CHUNK, QUERY_TILE
from twinpool.kernels.paged_attention import paged_attention

from .packed_batch import LAYER, Packed

HEADS = [(3, 3, 18), (14, 2, 64), (5, 1, 7)]
LENGTHS = [
    [(1, 1)],
    [(QUERY_TILE + 1, KEY_CHUNK + 3), (1, KEY_CHUNK), (1, KEY_CHUNK + 1), (3, 2 * KEY_CHUNK + 2)],
    [(30, 30), (1, 700), (20, 300)],
]
WINDOWS = [None, 1, 9, KEY_CHUNK, 300]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 9, 270])
def test_it_is_attention_by_its_definition_whatever_lies_in_other_slots(heads, lengths, window):
    packed = Packed(heads, lengths, window=window, deterministic=True)
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=1e-5, rtol=1e-5)


def test_in_bfloat16_only_the_result_is_rounded():
    packed = Packed((4, 2, 64), [(20, 400), (1, 90)], torch.bfloat16, deterministic=True)
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=1e-6, rtol=2**-8)


@pytest.mark.parametrize(
    ("heads", "window", "dtype", "threads"),
    [
        ((14, 2, 64), None, torch.float32, 1),
        pytest.param((14, 2, 64), None, torch.bfloat16, 2, marks=pytest.mark.slow),
        pytest.param((5, 1, 7), None, torch.float32, 2, marks=pytest.mark.slow),
        ((5, 1, 7), 1, torch.float32, 1),
        ((4, 2, 32), 9, torch.bfloat16, 1),
        ((4, 2, 32), KEY_CHUNK, torch.float32, 1),
        ((4, 2, 32), 270, torch.float32, 2),
    ],
)
def test_a_prompt_gives_the_same_bits_whole_in_chunks_and_token_by_token(heads, window, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = Packed(heads, [(300, 300)], dtype, window=window, deterministic=True)
        expected = whole.attend()
        for cuts in ([150], [1, 2, 11, KEY_CHUNK - 1, KEY_CHUNK], [250, *range(291, 300)]):
            cut = Packed(heads, [(300, 300)], dtype, window=window, deterministic=True)
            rows = [_attend_part(cut, start, end) for start, end in pairwise([0, *cuts, 300])]
            assert torch.equal(torch.cat(rows), expected)
    finally:
        torch.set_num_threads(before)


def _attend_part(packed, start, end):
    plan = packed.plan([end - start], [end], packed.tables)
    packed.write(plan, [0], [slice(start, end)])
    return paged_attention(packed.queries[0][start:end], packed.pool, LAYER, plan)


sequences = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 300)).map(lambda pair: (pair[0], sum(pair))), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(lengths=sequences, window=st.sampled_from(WINDOWS), seed=st.integers(0, 99))
def test_a_sequence_has_the_same_bits_alone_as_in_any_batch(lengths, window, seed):
    together = Packed((4, 2, 18), lengths, seed=seed, window=window, deterministic=True)
    rows = together.attend().split([new for new, _ in lengths])
    for sequence, length in enumerate(lengths):
        alone = Packed((4, 2, 18), [length], seed=seed + 1, window=window, deterministic=True)
        for name in ("keys", "values", "queries"):
            setattr(alone, name, [getattr(together, name)[sequence]])
        assert torch.equal(alone.attend(), rows[sequence])


def test_slots_of_its_own_last_block_that_were_never_written_are_not_met():
    packed = Packed((4, 2, 16), [(1, 20)], deterministic=True)
    expected = packed.attend()
    packed.pool[packed.tables[0][-1], LAYER, :, :, 4:] = torch.nan
    plan = packed.plan([1], [20], packed.tables)
    assert torch.equal(paged_attention(packed.queries[0], packed.pool, LAYER, plan), expected)
    assert np.isfinite(expected.numpy()).all()
