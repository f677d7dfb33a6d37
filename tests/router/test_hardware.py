"""The sheets, and the power that follows from them."""

from typing import get_args

import pytest

from twinpool.core.spec_fields import Hardware
from twinpool.router.hardware import GPUS, UnknownNumber, power_form


def test_the_yaml_knows_every_sheet_by_its_name() -> None:
    assert tuple(GPUS) == get_args(Hardware)


@pytest.mark.parametrize("name", GPUS)
def test_every_sheet_is_in_the_units_it_says(name: str) -> None:
    gpu = GPUS[name]
    assert 20e9 < gpu.memory_bytes < 300e9
    assert 2e11 < gpu.memory_bytes_per_s < 1e13
    assert gpu.peer_bytes_per_s < gpu.memory_bytes_per_s
    assert gpu.flops_per_s is None or 1e14 < gpu.flops_per_s < 1e16
    assert gpu.price_per_hour is None or 0.5 < gpu.price_per_hour < 20


def test_a_number_that_nobody_told_is_refused_by_name() -> None:
    assert GPUS["H200"].known("tdp_w") == 700.0
    with pytest.raises(UnknownNumber, match="A10G: its flops_per_s is not known"):
        GPUS["A10G"].known("flops_per_s")


def test_a_worker_draws_what_all_its_gpus_do() -> None:
    form = power_form(GPUS["A100-80GB"], 8)
    assert form is not None
    assert form.step_watts(0, 0) == 8 * 63
    assert form.step_watts(4096, 0) == 8 * 400
    assert form.step_watts(0, 1) == form.step_watts(0, 64) == 8 * 250


def test_a_cap_is_a_share_of_the_rated_power() -> None:
    form = power_form(GPUS["H100-SXM"], 8, cap_share=0.5)
    assert form is not None
    assert form.step_watts(4096, 0) == form.step_watts(0, 64) == 8 * 350


def test_gpus_of_unknown_power_have_none() -> None:
    assert power_form(GPUS["L4"], 1) is None
