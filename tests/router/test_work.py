"""What a request costs."""

import pytest

from twinpool.router.work import KV_TOKEN_S_PER_TOKEN, work_tokens


@pytest.mark.parametrize("num_output", [0, 1])
def test_without_decoding_it_is_the_prompt(num_output: int) -> None:
    assert work_tokens(100, num_output, 0.05) == 100


def test_the_kv_held_is_summed_over_the_steps() -> None:
    held = sum(100 + step for step in range(9)) * 0.05  # ten tokens, the first of the prefill
    assert work_tokens(100, 10, 0.05) == pytest.approx(100 + held / KV_TOKEN_S_PER_TOKEN)
