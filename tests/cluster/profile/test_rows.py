"""Steps are described by what they compute, and those that compute the same become one row."""

from dataclasses import replace

import numpy as np
import pytest

from twinpool.cluster.profile.rows import MIN_DECODE_SAMPLES, TimedStep, describe, sum_up
from twinpool.model.batch import Batch

CHUNK = TimedStep(0.0, 0.010, 0.008, 64, 4096, 1, 0, 0)
DECODE = TimedStep(0.0, 0.004, 0.003, 0, 0, 0, 100, 2)


def test_a_row_has_the_median_time_and_the_mean_context() -> None:
    steps = [
        DECODE._replace(seconds=seconds, run_s=seconds / 2, context_tokens=context)
        for seconds, context in ((0.004, 100), (0.005, 102), (0.9, 104), (0.004, 106), (0.006, 108))
    ]
    (row,) = sum_up(steps, least=1)
    assert (row.prefill_tokens, row.prefill_squares, row.batch, row.samples) == (0.0, 0.0, 2.0, 5)
    assert row.context_tokens == pytest.approx(104.0)
    assert row.seconds == pytest.approx(0.005)
    assert row.run_s == pytest.approx(0.0025)


def test_steps_that_differ_in_what_they_compute_are_rows_of_their_own() -> None:
    steps = [CHUNK, CHUNK._replace(prefill_squares=5000), CHUNK._replace(num_prompts=2), CHUNK._replace(batch=1)]
    assert len(sum_up(steps, least=1)) == 4


def test_what_was_seen_too_seldom_is_no_row() -> None:
    assert sum_up([CHUNK], least=2) == []
    assert len(sum_up([CHUNK, CHUNK], least=2)) == 1
    assert sum_up([DECODE] * (MIN_DECODE_SAMPLES - 1), least=1) == []
    assert sum_up([DECODE] * MIN_DECODE_SAMPLES, least=1) == [replace(sum_up([DECODE] * 9, least=1)[0], samples=4)]


def batch_of(*sequences: tuple[int, int]) -> Batch:
    """Of (new tokens, context afterwards) each."""
    new = [each[0] for each in sequences]
    return Batch(
        token_ids=np.zeros(sum(new), np.int64),
        cu_seqlens=np.cumsum([0, *new], dtype=np.int32),
        context_lens=np.array([each[1] for each in sequences], np.int32),
        block_tables=(),
        samples=(),
    )


@pytest.mark.parametrize(
    ("sequences", "described"),
    [
        ([(10, 10)], (10, 100, 1, 0, 0)),
        ([(4, 10), (3, 3)], (7, 100 - 36 + 9, 2, 0, 0)),
        ([(1, 8), (1, 5)], (0, 0, 0, 13, 2)),
        ([(1, 8), (6, 16)], (6, 256 - 100, 1, 8, 1)),
        ([(1, 1)], (1, 1, 1, 0, 0)),
    ],
)
def test_a_batch_is_described_by_its_chunks_and_its_decodes(
    sequences: list[tuple[int, int]], described: tuple[int, ...]
) -> None:
    assert describe(batch_of(*sequences)) == described
