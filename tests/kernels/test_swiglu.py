"""SwiGLU's gate against its definition, and row by row bit by bit."""

import pytest
import torch

from twinpool.kernels.swiglu import swiglu


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_it_is_the_gate_times_its_sigmoid_times_the_factor(dtype, tolerance, deterministic):
    gate_up = torch.randn(70, 2 * 1003, generator=torch.Generator().manual_seed(0)).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(
        swiglu(gate_up, deterministic).double(), gate * gate.sigmoid() * up, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("inner", [1, 13, 1003, 40_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_the_other_rows(dtype, inner, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = 70 if inner < 10_000 else 3
        gate_up = torch.randn(rows, 2 * inner, generator=torch.Generator().manual_seed(0)).to(dtype)
        whole = swiglu(gate_up, deterministic=True)
        assert torch.equal(torch.cat([swiglu(row[None], deterministic=True) for row in gate_up]), whole)
        assert torch.equal(swiglu(gate_up[1:], deterministic=True), whole[1:])
    finally:
        torch.set_num_threads(before)
