"""What a worker is asked to compute: everything that matters, nothing that it cannot take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.cluster.profile.grid import MAX_BURST_TOKENS, Burst, Limits, plan_bursts, predict_seconds

LIMITS = Limits(max_model_len=2048, chunk_tokens=256, max_running=256, total_tokens=65_536, block_tokens=16)


@pytest.mark.parametrize("quick", [False, True])
def test_the_grid_has_every_kind_of_step(quick: bool) -> None:
    bursts = plan_bursts(LIMITS, quick=quick)
    lengths = {length for burst in bursts if not burst.batch and not burst.cached_tokens for length in burst.prompts}
    batches = {burst.batch for burst in bursts if burst.batch and not burst.prompts}
    assert {16, 2047} <= lengths
    assert {1, 64} <= batches
    assert any(burst.cached_tokens for burst in bursts)
    assert any(burst.batch and burst.prompts for burst in bursts)
    assert any(burst.copies > 1 for burst in bursts)


def test_a_quick_grid_is_a_part_of_the_work() -> None:
    def work(quick: bool) -> int:
        return sum(burst.prefill_tokens for burst in plan_bursts(LIMITS, quick=quick))

    assert work(quick=True) < work(quick=False) / 2


@given(
    max_model_len=st.integers(2, 8192),
    chunk_tokens=st.integers(1, 2048),
    max_running=st.integers(1, 512),
    blocks=st.integers(1, 4096),
    quick=st.booleans(),
)
def test_nothing_in_the_grid_is_over_the_worker_s_limits(
    max_model_len: int, chunk_tokens: int, max_running: int, blocks: int, quick: bool
) -> None:
    limits = Limits(max_model_len, chunk_tokens, max_running, blocks * 16, 16)
    for burst in plan_bursts(limits, quick=quick):
        assert burst.batch <= max_running
        assert burst.peak_tokens <= min(limits.total_tokens, MAX_BURST_TOKENS)
        assert all(1 <= length < max_model_len for length in burst.prompts)
        assert all(burst.cached_tokens < length for length in burst.prompts)
        assert burst.cached_tokens % 16 == 0
        if burst.batch:
            assert burst.context_tokens >= 1
            assert burst.decode_tokens > 1
            assert burst.context_tokens + burst.decode_tokens <= max_model_len


def test_cheap_bursts_come_first() -> None:
    work = [burst.prefill_tokens for burst in plan_bursts(LIMITS, quick=False)]
    assert work == sorted(work)


def test_a_burst_is_predicted_from_its_tokens_and_steps() -> None:
    burst = Burst(batch=4, context_tokens=100, decode_tokens=20, prompts=(50,), copies=2)
    assert predict_seconds(burst, token_s=1e-3, step_s=1e-2) == pytest.approx(0.5 + 0.2)
