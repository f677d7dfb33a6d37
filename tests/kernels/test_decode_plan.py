import pytest
import torch

from twinpool.kernels.decode_plan import make_decode_plan, plan_decode
from twinpool.kernels.tiles import Gpu, choose_decode_tiles

MODULE = "decode_checks"
PLANS = [
    ([(1, 1)], 132, None, 64, 1),
    ([(1, 5000)], 132, None, 64, 1),
    ([(1, 100_000), (1, 1), (1, 64), (1, 65)], 132, None, 64, 1),
    ([(1, 4096)] * 70, 4, None, 64, 1),
    ([(1, 4096)] * 3, 132, 300, 64, 1),
    ([(1, 100_000), (1, 1)], 132, None, 1, 1),
    ([(1, 100_000), (1, 1)], 132, None, 7, 1),
    ([(5, 700), (1, 0), (0, 0), (6, 9000), (1, 300)], 132, None, 64, 5),
    ([(0, 0)] * 3, 132, None, 64, 1),
]


@pytest.mark.parametrize(("lengths", "num_sms", "window", "most_splits", "most_queries"), PLANS)
def test_the_work_list_is_the_references(interpreter, lengths, num_sms, window, most_splits, most_queries):
    interpreter.run(MODULE, "check_plan", lengths, num_sms, window, most_splits, most_queries)


def test_one_long_sequence_is_cut_and_many_equal_ones_are_not(interpreter):
    interpreter.run(MODULE, "check_splits", [(1, 40_000)], [32])
    interpreter.run(MODULE, "check_splits", [(1, 40_000)] + [(1, 100)] * 3, [32, 1, 1, 1])
    interpreter.run(MODULE, "check_splits", [(1, 4000)] * 40, [1] * 40)


def make(num_sequences=3, **options):
    tiles = choose_decode_tiles(Gpu("cuda", 90), 64, torch.float16, 2)
    return make_decode_plan(num_sequences, 4, 2, 64, tiles, 8, torch.device("cpu"), **options)


LENGTHS = torch.ones(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("bounds", "context", "complaint"),
    [
        (torch.zeros(3, dtype=torch.int32), LENGTHS[:2], "made for 3 sequences, not 2"),
        (torch.zeros(4), LENGTHS, "must be int32"),
        (torch.zeros(5, dtype=torch.int32)[1:], LENGTHS, "address of lengths"),
        (torch.zeros(4, dtype=torch.int32), LENGTHS.to("meta"), "on cpu"),
    ],
)
def test_lengths_that_the_plan_was_not_made_for_are_refused(bounds, context, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan_decode(make(), bounds, context)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_sequences": 4097}, "4097 sequences"),
        ({"most_queries": 0}, "0 queries"),
        ({"most_queries": 9}, "9 queries are 18 rows"),
        ({"most_splits": 65}, "65 splits"),
        ({"window": 0}, "window 0"),
    ],
)
def test_a_plan_out_of_range_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**options)
