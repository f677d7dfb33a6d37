import pytest
import torch

from twinpool.kernels.add_rms_norm import add_rms_norm, add_rms_norm_reference
from twinpool.model.decoder import rms_norm

MODULE = "elementwise_checks"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("width", [16, 512, 528, 1040])
@pytest.mark.parametrize(("is_added", "is_aliased"), [(False, False), (True, False), (True, True)])
def test_a_row_is_added_and_normed(interpreter, dtype, width, is_added, is_aliased):
    interpreter.run(MODULE, "check_norm", 3, width, dtype, is_added, is_aliased)


def test_no_rows_launch_nothing(interpreter):
    interpreter.run(MODULE, "check_no_norm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_decoders_norm_of_the_sum(dtype):
    torch.manual_seed(0)
    residual, added, weight = (torch.randn(shape).to(dtype) for shape in ((5, 64), (5, 64), (64,)))
    total, normed = add_rms_norm_reference(residual, added, weight, 1e-6)
    torch.testing.assert_close(total, residual + added)
    torch.testing.assert_close(normed, rms_norm(residual + added, weight, 1e-6))
    torch.testing.assert_close(add_rms_norm_reference(total, None, weight, 1e-6)[1], normed)


def rows(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


NORMS = [
    ((rows(2, 3, 16), None, rows(16), 1e-6, rows(2, 16)), r"must be \[T, C\]"),
    ((rows(2, 16, dtype=torch.float64), None, rows(16), 1e-6, rows(2, 16)), "float64"),
    ((rows(2, 24), None, rows(24), 1e-6, rows(2, 24)), "width 24"),
    ((rows(2, 16400), None, rows(16400), 1e-6, rows(2, 16400)), "width 16400"),
    ((rows(2, 16), rows(3, 16), rows(16), 1e-6, rows(2, 16)), "added is"),
    ((rows(2, 16), None, rows(32), 1e-6, rows(2, 16)), "weight is"),
    ((rows(2, 16), None, rows(16).float(), 1e-6, rows(2, 16)), "weight is torch.float32"),
    ((rows(2, 16), None, rows(16), 1e-6, rows(2, 16).to("meta")), "on meta"),
    ((rows(2, 16), None, rows(16), 1e-6, rows(16, 2).T), "out must be contiguous"),
    ((rows(2, 16), None, rows(17)[1:], 1e-6, rows(2, 16)), "weight must be contiguous, its address"),
]


@pytest.mark.parametrize(("arguments", "complaint"), NORMS)
def test_arguments_that_no_variant_takes_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        add_rms_norm(*arguments)
