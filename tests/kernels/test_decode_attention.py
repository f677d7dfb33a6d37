import pytest

from twinpool.kernels.paged_kv import BLOCK_TOKENS

MODULE = "decode_checks"


def ragged(block):
    return [(1, length) for length in (1, block - 1, block, block + 1, 3 * block + 5)]


def check(interpreter, heads, lengths, *, least_splits=1, launch=(), **options):
    interpreter.run(MODULE, "check_attention", heads, lengths, options, dict(launch), least_splits)


@pytest.mark.parametrize("block_tokens", BLOCK_TOKENS)
def test_attention_is_its_definition_for_ragged_lengths_in_any_block_size(interpreter, block_tokens):
    check(interpreter, (4, 2, 64), ragged(block_tokens), block_tokens=block_tokens, dtype="fp16")


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_any_head_size_and_dtype_is_computed(interpreter, head_dim, dtype):
    check(interpreter, (3, 1, head_dim), [(1, 1), (1, 37)], dtype=dtype)


@pytest.mark.parametrize("group", [1, 2, 5, 7, 8, 16])
def test_any_ratio_of_heads_is_computed(interpreter, group):
    check(interpreter, (2 * group, 2, 64), [(1, 70), (1, 17)], dtype="fp16")


def test_a_long_sequence_is_cut_and_merged(interpreter):
    lengths = [(1, 5 * 128 + 3), (1, 20), (1, 129)]
    check(interpreter, (4, 1, 64), lengths, dtype="fp16", least_splits=5)


def test_as_many_cuts_as_there_may_be_are_merged(interpreter):
    launch = {"num_sms": 1000, "least_chunk": 16}
    check(interpreter, (2, 1, 64), [(1, 64 * 16)], dtype="fp32", launch=launch, least_splits=64)


def test_a_plan_that_never_cuts_writes_the_output_itself(interpreter):
    check(interpreter, (2, 1, 64), [(1, 300), (1, 7)], dtype="fp16", launch={"most_splits": 1})


@pytest.mark.parametrize("window", [1, 16, 17, 100])
@pytest.mark.parametrize("block_tokens", [16, 64])
def test_blocks_before_the_window_are_not_read(interpreter, window, block_tokens):
    lengths = [(1, 1), (1, 90), (1, 200)]
    check(interpreter, (2, 1, 64), lengths, window=window, block_tokens=block_tokens, dtype="fp16")


@pytest.mark.parametrize("window", [None, 9])
def test_several_new_tokens_see_what_is_before_each(interpreter, window):
    lengths = [(4, 200), (1, 130), (3, 3), (2, 65)]
    check(interpreter, (4, 2, 64), lengths, dtype="fp16", window=window, launch={"most_queries": 4})


def test_rows_that_fill_the_large_tile_are_computed(interpreter):
    check(interpreter, (32, 2, 64), [(4, 70), (2, 2)], dtype="fp16", launch={"most_queries": 4})


def test_sequences_with_more_new_tokens_are_left_alone(interpreter):
    check(interpreter, (2, 1, 64), [(1, 20), (9, 33), (1, 40)], dtype="fp16")


def test_places_that_are_not_used_take_no_part(interpreter):
    check(interpreter, (2, 1, 64), [(1, 20), (0, 0), (1, 33), (0, 0)], dtype="fp16")
    check(interpreter, (2, 1, 64), [(0, 0), (0, 0)], dtype="fp16", least_splits=0)


def test_an_empty_batch_launches_nothing(interpreter):
    interpreter.run(MODULE, "check_empty_batch")


def test_blocks_more_than_2_to_the_31_numbers_apart_are_found(interpreter):
    interpreter.run(MODULE, "check_distant_blocks")


def test_bfloat16_is_right_in_the_interpreter_only_as_the_kernel_widens_it(interpreter):
    interpreter.run(MODULE, "check_that_widening_is_what_saves_bfloat16")
