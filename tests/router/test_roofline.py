"""Rooflines move the way hardware does; the numbers here are small enough to follow by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.model.config import load_model_config
from twinpool.router.hardware import Gpu, UnknownNumber
from twinpool.router.roofline import Efficiency, ModelSize, RooflineForm, kv_capacity_tokens, roofline_form

GPU = Gpu("test", 1e12, 10**9, 1e10, 1e9, 1e8, None, None, None, None, None)
SIZE = ModelSize(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=100)
IDEAL = Efficiency(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
LAYER = 64 * 16 * 2 * (4 + 2) + 3 * 64 * 128  # parameters


def form(tp: int = 1, pp: int = 1, size: ModelSize = SIZE, efficiency: Efficiency = IDEAL) -> RooflineForm:
    return roofline_form(size, GPU, tp, pp, efficiency)


def test_weights_are_those_of_the_decoder_that_computes_them() -> None:
    config = load_model_config("dummy:llama-3-8b")
    size = ModelSize.of(config)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    assert size.weight_bytes == 2 * (config.num_parameters - norms)
    assert size.kv_token_bytes == 2 * 32 * 8 * 128 * 2


def test_a_lone_decode_step_reads_the_weights_and_the_kv() -> None:
    head = 100 * 64
    expected = (2 * (2 * LAYER + head) + 1000 * SIZE.kv_token_bytes) / 1e10
    assert form().seconds(0.0, 0.0, 1000.0, 1.0) == pytest.approx(expected)


def test_a_long_prefill_takes_its_arithmetic() -> None:
    tokens = 1e5
    products = 2 * 2 * LAYER * tokens + 2 * 100 * 64
    attention = 4 * 2 * 4 * 16 * tokens**2 / 2
    assert form().seconds(tokens, tokens**2, 0.0, 0.0) == pytest.approx((products + attention) / 1e12)


def test_without_overlap_arithmetic_and_weights_add_up() -> None:
    apart = form(efficiency=replace(IDEAL, overlap=0.0)).seconds(0.0, 0.0, 0.0, 8.0)
    overlapped = form().seconds(0.0, 0.0, 0.0, 8.0)
    assert apart == pytest.approx(overlapped + (2 * 2 * LAYER * 8 + 2 * 100 * 64 * 8) / 1e12)


def test_tensor_parallel_ranks_share_the_work_and_pay_a_ring() -> None:
    ring = 2 * 2 * (2 * 1 / 2) * 64 * 2 / 1e9  # layers, all-reduces, ring's share, bytes of one token
    step = form(1).seconds(0.0, 0.0, 0.0, 1.0)
    assert form(2).seconds(0.0, 0.0, 0.0, 1.0) == pytest.approx(step / 2 + ring)


def test_kv_heads_that_do_not_divide_among_ranks_are_kept_by_several() -> None:
    context_s = [form(tp).context_s for tp in (1, 2, 4)]
    assert context_s[0] == pytest.approx(2 * context_s[1])
    assert context_s[2] == context_s[1]


def test_pipeline_stages_cost_a_hop_over_the_network_and_make_no_step_faster() -> None:
    hop = 64 * 2 / 1e8
    assert form(1, 3).seconds(10.0, 0.0, 0.0, 0.0) == pytest.approx(form().seconds(10.0, 0.0, 0.0, 0.0) + 2 * hop * 10)


def test_every_efficiency_lost_costs_time() -> None:
    work = (500.0, 500.0**2, 4000.0, 8.0)
    best = form(2).seconds(*work)
    for name in ("compute", "attention", "weights", "kv", "peers", "overlap"):
        assert form(2, efficiency=replace(IDEAL, **{name: 0.5})).seconds(*work) >= best
    for name in ("layer_s", "hop_s", "sequence_s"):
        assert form(2, efficiency=replace(IDEAL, **{name: 1e-3})).seconds(*work) > best


def test_few_tokens_touch_few_experts() -> None:
    experts = replace(SIZE, experts=8, active_experts=2)
    lone, many = (form(size=experts).seconds(0.0, 0.0, 0.0, batch) for batch in (1.0, 200.0))
    expert_s = SIZE.layers * SIZE.expert_parameters * 2 / 1e10
    dense_s = (experts.weight_bytes - 100 * 64 * 2) / 1e10 - 8 * expert_s
    assert lone == pytest.approx(dense_s + 2 * expert_s)
    assert many == pytest.approx(dense_s + 8 * expert_s)


def test_no_work_takes_no_time() -> None:
    assert form(2, 2).seconds(0.0, 0.0, 0.0, 0.0) == 0.0
    assert form().decode_seconds(0.0, 0, 7) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.integers(1, 100), st.integers(0, 60))
def test_many_decode_steps_take_the_sum_of_each(context: int, batch: int, num_steps: int) -> None:
    steps = form(2, efficiency=Efficiency())
    each = [steps.seconds(0.0, 0.0, float(context + i * batch), float(batch)) for i in range(num_steps)]
    assert steps.decode_seconds(context, batch, num_steps) == pytest.approx(sum(each))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5000)] * 4), min_size=1, max_size=5))
def test_arrays_take_what_their_numbers_take(rows: list[tuple[int, int, int, int]]) -> None:
    steps = form(2, efficiency=Efficiency())
    expected = [steps.seconds(*(float(value) for value in row)) for row in rows]
    np.testing.assert_allclose(steps.seconds(*np.array(rows, np.float64).T), expected)


def test_a_sheet_without_arithmetic_is_refused_by_name() -> None:
    with pytest.raises(UnknownNumber, match="test: its flops_per_s is not known"):
        roofline_form(SIZE, replace(GPU, flops_per_s=None))


def test_only_stages_need_a_network() -> None:
    lone = replace(GPU, nic_bytes_per_s=None)
    roofline_form(SIZE, lone, 2, 1)
    with pytest.raises(UnknownNumber, match="nic_bytes_per_s"):
        roofline_form(SIZE, lone, 1, 2)


def test_what_weights_and_activations_leave_holds_kv() -> None:
    room = 1e9 * 0.5 - SIZE.weight_bytes - 10 * (4 * 64 + 2 * 128) * 2 - 256 * 100 * 4
    found = kv_capacity_tokens(SIZE, GPU, memory_share=0.5, step_tokens=10)
    assert found == int(room / SIZE.kv_token_bytes)


def test_more_ranks_hold_more_kv_and_a_model_that_does_not_fit_none() -> None:
    lone, two, staged = (kv_capacity_tokens(SIZE, GPU, tp, pp) for tp, pp in ((1, 1), (2, 1), (1, 2)))
    assert 2 * lone < two
    assert 2 * lone < staged
    assert kv_capacity_tokens(SIZE, GPU, 4, 1) < 1.1 * two  # as many KV heads as two ranks
    assert kv_capacity_tokens(replace(SIZE, layers=20_000), GPU) == 0
