import numpy as np
import pytest

from twinpool.core.errors import SpecError
from twinpool.model.modelled_shape import StepLatency, modelled_shape

LATENCY = StepLatency(
    prefill_a_s=1.0, prefill_b_s=0.1, prefill_c_s=0.001, decode_alpha_s=2.0, decode_beta_s=0.01, decode_gamma_s=0.5
)


def step_s(*sequences: tuple[int, int], latency: StepLatency = LATENCY) -> float:
    """Seconds of a step over (new tokens, context length) each."""
    new_tokens, context_lens = np.array(sequences, np.int32).T
    return latency.step_s(new_tokens, context_lens)


def test_prefill_costs_its_tokens_and_their_squares() -> None:
    assert step_s((10, 10), (20, 20)) == pytest.approx(1 + 0.1 * 30 + 0.001 * 500)


def test_decode_costs_its_contexts_and_its_sequences() -> None:
    assert step_s((1, 100), (1, 50)) == pytest.approx(2 + 0.01 * 150 + 0.5 * 2)


def test_a_mixed_step_costs_both_and_the_larger_fixed_term_once() -> None:
    assert step_s((10, 10), (1, 100)) == pytest.approx(2 + 1 + 0.1 + 1 + 0.5)


def test_chunks_of_a_prompt_add_up_to_the_whole_but_for_the_fixed_term() -> None:
    chunks = step_s((10, 10)) + step_s((20, 30)) + step_s((5, 35))
    assert chunks - 2 == pytest.approx(step_s((35, 35)))


def test_a_prompt_of_one_token_is_a_prefill() -> None:
    assert step_s((1, 1)) == pytest.approx(1 + 0.1 + 0.001)


def test_squares_of_long_contexts_do_not_overflow() -> None:
    assert step_s((2**17, 2**17), latency=StepLatency(prefill_c_s=1.0)) == 2.0**34


def test_named_shapes_are_known_and_others_refused_with_a_list() -> None:
    assert modelled_shape("modelled:instant").latency == StepLatency()
    assert step_s((1, 1000), latency=modelled_shape("modelled:a100-13b").latency) == pytest.approx(20.64e-3)
    assert modelled_shape("modelled:instant").kv_token_bytes == 64
    for path in ("modelled:none", "instant", "dummy:instant"):
        with pytest.raises(SpecError, match=f"{path}: not a modelled model; known: modelled:instant, "):
            modelled_shape(path)
