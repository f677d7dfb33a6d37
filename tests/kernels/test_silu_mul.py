import pytest
import torch

from twinpool.kernels.silu_mul import silu_mul, silu_mul_reference
from twinpool.kernels.swiglu import swiglu

MODULE = "elementwise_checks"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("inner", [16, 1024, 1040])
def test_a_row_is_gated(interpreter, dtype, inner):
    interpreter.run(MODULE, "check_gate", 3, inner, dtype)


def test_no_rows_launch_nothing(interpreter):
    interpreter.run(MODULE, "check_no_gate")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_decoders_gate(dtype):
    gate_up = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(silu_mul_reference(gate_up), swiglu(gate_up))


def rows(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


GATES = [
    ((rows(2, 16), rows(2, 16)), r"\[T, 2I\] and \[T, I\]"),
    ((rows(2, 32), rows(2, 16).float()), "must be one of"),
    ((rows(2, 48), rows(2, 24)), "inner width 24"),
    ((rows(32, 2).T, rows(2, 16)), "gate_up must be contiguous"),
]


@pytest.mark.parametrize(("arguments", "complaint"), GATES)
def test_arguments_that_no_variant_takes_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        silu_mul(*arguments)
