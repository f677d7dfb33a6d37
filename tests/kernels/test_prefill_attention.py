import numpy as np
import pytest

from twinpool.kernels.paged_kv import BLOCK_TOKENS
from twinpool.kernels.prefill_plan import plan_prefill

MODULE = "prefill_checks"
SMALL = {"block_m": 16, "block_n": 32, "num_warps": 4, "num_stages": 1, "precision": "ieee"}


def check(interpreter, heads, lengths, *, tiles=SMALL, most_short=0, **options):
    interpreter.run(MODULE, "check_attention", heads, lengths, options, tiles, most_short)


@pytest.mark.parametrize("block_tokens", BLOCK_TOKENS)
def test_attention_is_its_definition_for_ragged_lengths_in_any_block_size(interpreter, block_tokens):
    lengths = [(length, length) for length in (1, block_tokens - 1, block_tokens, block_tokens + 1)]
    lengths.append((block_tokens // 4 + 1, 3 * block_tokens + 5))
    tiles = SMALL | {"block_m": 64, "block_n": 64}
    check(interpreter, (2, 1, 64), lengths, tiles=tiles, block_tokens=block_tokens, dtype="fp16")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_any_head_size_and_dtype_is_computed_in_the_tiles_of_hopper(interpreter, head_dim, dtype):
    check(interpreter, (3, 1, head_dim), [(50, 70)], tiles=None, dtype=dtype)


@pytest.mark.parametrize("group", [1, 2, 5, 7, 8, 16])
def test_any_ratio_of_heads_is_computed(interpreter, group):
    check(interpreter, (2 * group, 2, 64), [(5, 40), (3, 3)], dtype="fp16")


def test_a_chunk_attends_to_what_was_cached_before_it(interpreter):
    check(interpreter, (2, 1, 64), [(17, 200), (40, 41), (1, 99)], dtype="fp16", block_tokens=32)


@pytest.mark.parametrize("window", [1, 15, 32, 33, 70, 1000])
@pytest.mark.parametrize("block_tokens", [16, 64])
def test_a_window_hides_what_is_before_it_and_its_blocks_are_not_read(interpreter, window, block_tokens):
    lengths = [(40, 40), (33, 150), (2, 99)]
    check(interpreter, (2, 1, 64), lengths, window=window, block_tokens=block_tokens, dtype="fp16")


def test_short_sequences_are_the_decode_kernels_and_both_together_fill_the_output(interpreter):
    interpreter.run(MODULE, "check_mixed_batch")


def test_no_tiles_launch_nothing(interpreter):
    interpreter.run(MODULE, "check_no_tiles")


def test_blocks_more_than_2_to_the_31_numbers_apart_are_found(interpreter):
    interpreter.run(MODULE, "check_distant_blocks")


def test_bfloat16_is_right_in_the_interpreter_only_as_the_kernel_widens_it(interpreter):
    interpreter.run(MODULE, "check_that_widening_is_what_saves_bfloat16")


def plan(lengths, **options):
    new_tokens, contexts = (np.array(column, np.int32) for column in zip(*lengths, strict=True))
    return plan_prefill(new_tokens, contexts, **{"group": 4, "block_m": 64, "most_short": 4} | options).tolist()


def test_tiles_that_see_more_keys_come_first():
    assert plan([(20, 20), (4, 900), (17, 100)]) == [[2, 16], [2, 0], [0, 16], [0, 0]]


def test_with_a_window_tiles_are_ordered_by_what_it_shows():
    assert plan([(16, 500), (32, 32)], window=30) == [[0, 0], [1, 16], [1, 0]]


def test_ties_keep_the_order_of_the_batch():
    assert plan([(5, 5), (5, 5), (0, 0), (5, 5)]) == [[0, 0], [1, 0], [3, 0]]


def test_each_query_of_a_long_sequence_is_in_one_tile():
    lengths = [(100, 130), (3, 3), (9, 9)]
    seen = sorted(
        (sequence, query)
        for sequence, first in plan(lengths, group=7)
        for query in range(first, min(first + 64 // 7, lengths[sequence][0]))
    )
    assert seen == [(0, query) for query in range(100)] + [(2, query) for query in range(9)]


@pytest.mark.parametrize(
    ("lengths", "options", "complaint"),
    [
        ([(3, 2)], {}, "more of them than context"),
        ([(-1, 2)], {}, "fewer than no new tokens"),
        ([(1, 2)], {"group": 65}, "out of range"),
        ([(1, 2)], {"window": 0}, "out of range"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(lengths, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan(lengths, **options)
