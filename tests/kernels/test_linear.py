"""Every way of multiplying against the definition in float64; deterministic products bit by bit."""

import pytest
import torch

from twinpool.kernels import linear
from twinpool.kernels.int8_product import MAX_ROWS, has_int8_product
from twinpool.kernels.linear import Arithmetic, PackedLinear, PlainLinear, has_packed_product, make_linear

SHAPES = [(24, 16), (1, 64), (33, 37), (1100, 1000)]  # outputs, inputs
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
INT8_TOLERANCE = 0.02  # of the largest output; rounding weights to 8 bits moves a sum of random terms by about 1 %


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def operands(shape, rows, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, x = (
        torch.randn(size, generator=generator).to(dtype) for size in (shape, shape[:1], (rows, shape[1]))
    )
    return weight, bias, x


def expected(weight, bias, x):
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_every_arithmetic_is_the_product_in_the_weights_dtype(arithmetic, dtype, tolerance, shape, with_bias):
    weight, bias, x = operands(shape, 70, dtype)
    bias = bias if with_bias else None
    exact = expected(weight, bias, x)
    multiply = make_linear(weight.clone(), bias, arithmetic)
    if arithmetic is Arithmetic.INT8:
        tolerance = max(tolerance, INT8_TOLERANCE)
    for rows in (0, 1, 3, 4, 9, 32, 70):
        out = multiply(x[:rows])
        assert out.dtype == dtype
        assert out.shape == (rows, shape[0])
        if rows:
            assert (out - exact[:rows]).abs().max() <= tolerance * exact[:rows].abs().max()


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_rows_need_not_be_contiguous(arithmetic):
    weight, bias, x = operands((24, 16), 12, torch.float32)
    multiply = make_linear(weight, bias, arithmetic)
    torch.testing.assert_close(multiply(x[::2]), multiply(x[::2].contiguous()), rtol=0, atol=0)
    torch.testing.assert_close(multiply(x.t().contiguous().t()), multiply(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [*SHAPES, (300, 1030), (64, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_rows_have_the_same_bits_in_any_company_and_place(dtype, shape, threads):
    weight, bias, x = operands(shape, 75, dtype)
    multiply = make_linear(weight, bias, Arithmetic.DETERMINISTIC)
    whole = multiply(x)
    for start, end in [(0, 1), (74, 75), (3, 7), (5, 38), (31, 33), (0, 64), (20, 75)]:
        assert torch.equal(multiply(x[start:end]), whole[start:end])
    poisoned = x.clone()
    poisoned[1::2] = torch.nan
    assert torch.equal(multiply(poisoned)[::2], whole[::2])


def test_a_product_that_depends_on_a_rows_place_is_not_called_deterministic():
    def shifting(x):
        return x[:, :5] + torch.arange(len(x))[:, None]

    with pytest.raises(linear.UnstableOrderError, match="depend on a row's place"):
        linear.has_one_order(shifting, 7, 5, torch.float32)


def test_small_tiles_are_not_used_where_their_bits_differ():
    def sloppy(x):
        return x[:, :5] + (len(x) < linear.TILE_ROWS)

    assert not linear.has_one_order(sloppy, 9, 5, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_weights_are_exact_where_eight_bits_are_enough_and_outliers_among_inputs_do_no_harm(dtype):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (40, 96), generator=generator).to(dtype)
    weight[:, 0] = 127
    x = torch.randn(3, 96, generator=generator).to(dtype)
    x[:, 5] = 500
    exact = expected(weight, None, x)
    out = make_linear(weight.clone(), None, Arithmetic.INT8)(x)
    torch.testing.assert_close(out.double(), exact, rtol=5e-3, atol=1e-3 * float(exact.abs().max()))


def test_eight_bit_products_are_for_few_rows_only():
    weight, _, x = operands((40, 96), MAX_ROWS + 1, torch.float32)
    multiply, plain = (make_linear(weight.clone(), None, how) for how in (Arithmetic.INT8, Arithmetic.FAST))
    assert has_int8_product()
    assert torch.equal(multiply(x), plain(x))
    assert not torch.equal(multiply(x[:MAX_ROWS]), plain(x[:MAX_ROWS]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(bad):
    weight, _, x = operands((40, 96), 4, torch.float32)
    multiply = make_linear(weight, None, Arithmetic.INT8)
    clean = multiply(x)
    x[1, 7] = bad
    out = multiply(x)
    assert not out[1].isfinite().any()
    assert torch.equal(out[[0, 2, 3]], clean[[0, 2, 3]])


def test_memory_kept_is_told():
    weight, bias, _ = operands((24, 16), 1, torch.float32)
    assert make_linear(weight, bias, Arithmetic.PLAIN).num_bytes == 24 * 16 * 4 + 24 * 4
    assert make_linear(weight, None, Arithmetic.FAST).num_bytes == 24 * 16 * 4
    assert make_linear(weight, None, Arithmetic.INT8).num_bytes == 24 * 16 * 5 + 24 * 4


def test_this_machine_has_packed_products_and_others_fall_back_to_plain_ones(monkeypatch, caplog):
    assert has_packed_product(torch.float32)
    assert isinstance(make_linear(torch.ones(2, 2, dtype=torch.bfloat16), None, Arithmetic.FAST), PackedLinear)
    has_packed_product.cache_clear()
    try:
        monkeypatch.setattr(linear, "_packed_product", _missing)
        assert isinstance(make_linear(torch.ones(2, 2, dtype=torch.bfloat16), None, Arithmetic.FAST), PlainLinear)
        assert "plain ones instead" in caplog.text
    finally:
        has_packed_product.cache_clear()


def _missing(*args):
    raise AttributeError("no such operator")
