"""What comes out of a codec is near what went in, by a bound that follows from the format; what is sick stays sick."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from twinpool.kv_transfer import record_codec
from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.kv_transfer.codec_format import LARGEST, TINY, value_group
from twinpool.kv_transfer.record_codec import make_codec
from twinpool.model.kv_layout import KVLayout

LOSSY = [name for name in CodecName if name is not CodecName.RAW]
DTYPES = ["float32", "bfloat16", "float16"]


def bytes_of(values: Tensor) -> NDArray[np.uint8]:
    return values.contiguous().view(torch.uint8).numpy().reshape(-1)


def tensor_of(span: CodedSpan, data: NDArray[np.uint8]) -> Tensor:
    shape = span.layout
    axes = (span.num_blocks, span.num_layers, 2, shape.num_kv_heads, shape.block_tokens, shape.head_dim)
    return torch.from_numpy(data).view(getattr(torch, shape.dtype)).view(axes)


def round_trip(name: CodecName, span: CodedSpan, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codec = make_codec(name)
    encoded, out = np.empty(codec.encoded_bytes(span), np.uint8), np.empty(span.raw_bytes, np.uint8)
    before = raw.copy()
    codec.encode(span, raw, encoded)
    sent = encoded.copy()
    codec.decode(span, encoded, out)
    assert np.array_equal(raw, before)
    assert np.array_equal(encoded, sent)
    return out


def span_of(dtype: str, heads: int = 2, tokens: int = 8, dim: int = 64, blocks: int = 2, layers: int = 2) -> CodedSpan:
    return CodedSpan(KVLayout(layers, heads, tokens, dim, dtype, "m"), blocks, layers)


def random_values(span: CodedSpan, seed: int, spread: float = 1.0, offset: float = 0.0) -> Tensor:
    """Normal values whose K channels lie far apart, as those of real models do."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tensor_of(span, np.zeros(span.raw_bytes, np.uint8)).shape, generator=rng)
    x[:, :, 0] += offset * torch.randn(span.layout.head_dim, generator=rng)
    largest = 65504.0 if span.layout.dtype == "float16" else 1e37
    return (x * spread).clamp(-largest, largest).to(getattr(torch, span.layout.dtype))


def group_error(x: Tensor, axis: int, levels: int, dtype: torch.dtype) -> Tensor:
    """Half a scale, for each element: the group's range over the levels, rounded up to the scale's precision."""
    step = (x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True)) / levels
    precision = 2.0**-10 if dtype is torch.float16 else 2.0**-7
    smallest = 2.0**-24 if dtype is torch.float16 else 0.0
    return torch.maximum(step * (1 + precision), step + smallest).mul(0.5).expand_as(x)


def bound(name: CodecName, span: CodedSpan, x: Tensor) -> Tensor:
    """The most that each element may change, from its own group alone (float64)."""
    dtype, x = x.dtype, x.double()
    if name in (CodecName.INT8, CodecName.FP8):
        peak = x.abs().amax(-1, keepdim=True)
        coarse = peak / 127 / 2 if name is CodecName.INT8 else torch.maximum(x.abs() / 16, peak / 448 / 1024)
        error = coarse.expand_as(x)
    else:
        levels = 15 if name is CodecName.INT4 else 3
        size = value_group(name, span.layout.head_dim)
        keys = group_error(x[:, :, 0], -2, levels, dtype)
        values = group_error(x[:, :, 1].unflatten(-1, (-1, size)), -1, levels, dtype).flatten(-2)
        error = torch.stack((keys, values), 2)
    eps = torch.finfo(dtype).eps
    reach = x.abs() + error
    return error * (1 + 1e-4) + reach * (eps / 2 + 1e-6) + torch.finfo(dtype).smallest_normal * eps + TINY


@pytest.mark.parametrize("name", LOSSY)
@given(
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from([1, 2, 3]),
    tokens=st.sampled_from([8, 16, 32]),
    dim=st.sampled_from([32, 64, 80, 96, 128]),
    spread=st.sampled_from([1e-6, 1e-3, 1.0, 100.0, 1e30]),
    offset=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20, deadline=None)
def test_no_element_changes_by_more_than_its_group_allows(
    name: CodecName, dtype: str, heads: int, tokens: int, dim: int, spread: float, offset: float, seed: int
) -> None:
    span = span_of(dtype, heads, tokens, dim)
    x = random_values(span, seed, spread, offset)
    y = tensor_of(span, round_trip(name, span, bytes_of(x)))
    error = (y.double() - x.double()).abs()
    assert bool((error <= bound(name, span, x)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_codecs_is_the_order_of_their_loss(dtype: str) -> None:
    span = span_of(dtype, tokens=64, dim=128)
    x = random_values(span, 1)
    errors = [
        (tensor_of(span, round_trip(name, span, bytes_of(x))).double() - x.double()).square().mean().item()
        for name in CodecName
    ]
    assert errors[0] == 0.0
    assert errors == sorted(errors)
    assert len(set(errors)) == len(errors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_gives_back_any_bytes(dtype: str) -> None:
    span = span_of(dtype)
    raw = np.random.default_rng(0).integers(0, 256, span.raw_bytes, dtype=np.uint8)
    assert np.array_equal(round_trip(CodecName.RAW, span, raw), raw)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_partial_last_block_is_raw_whatever_it_holds_and_touches_no_other(name: CodecName, dtype: str) -> None:
    full = span_of(dtype, blocks=3)
    partial = CodedSpan(full.layout, 3, full.num_layers, is_last_partial=True)
    x = random_values(full, 2)
    x[-1, :, :, :, 5:] = torch.nan
    y = tensor_of(partial, round_trip(name, partial, bytes_of(x)))
    assert np.array_equal(bytes_of(y[-1]), bytes_of(x[-1]))
    alone = CodedSpan(full.layout, 2, full.num_layers)
    assert np.array_equal(bytes_of(y[:-1]), round_trip(name, alone, bytes_of(x[:-1])))


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sick", [torch.nan, torch.inf, -torch.inf])
def test_a_sick_value_makes_its_group_nan_and_changes_no_other(name: CodecName, dtype: str, sick: float) -> None:
    span = span_of(dtype)
    x = random_values(span, 3)
    well = tensor_of(span, round_trip(name, span, bytes_of(x)))
    x[1, 0, 0, 1, 4, 7] = sick  # K
    x[0, 1, 1, 0, 2, 40] = sick  # V
    y = tensor_of(span, round_trip(name, span, bytes_of(x)))
    expected = torch.zeros_like(x, dtype=torch.bool)
    if name in (CodecName.INT8, CodecName.FP8):
        expected[1, 0, 0, 1, 4], expected[0, 1, 1, 0, 2] = True, True
    else:
        expected[1, 0, 0, 1, :, 7] = True
        expected[0, 1, 1, 0, 2, (0 if name is CodecName.INT4 else 32) :] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(y[~expected], well[~expected])


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_zeros_come_back_and_so_do_groups_of_one_value_that_have_a_zero_point(
    name: CodecName, dtype: str
) -> None:
    span = span_of(dtype)
    x = torch.zeros_like(random_values(span, 0))
    if name in (CodecName.INT4, CodecName.INT2):
        x[0] = -3.140625
    y = tensor_of(span, round_trip(name, span, bytes_of(x)))
    assert torch.equal(x, y)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_the_smallest_numbers_stay_finite(name: CodecName, dtype: str) -> None:
    span = span_of(dtype)
    x = random_values(span, 4)
    info = torch.finfo(x.dtype)
    x[0, 0, :, :, 0::2, 0::3], x[0, 0, :, :, 1::2, 1::3] = info.max, info.min
    x[0, 1] *= info.smallest_normal
    x[1, 0] = info.max
    y = tensor_of(span, round_trip(name, span, bytes_of(x)))
    assert bool(y.isfinite().all())
    most = min(info.max, LARGEST)
    held = x.double().clamp(-most, most)
    slack = torch.finfo(torch.bfloat16).eps * most
    assert bool(((y.double() - held).abs() <= bound(name, span, held.to(x.dtype)) + slack).all())
    assert y[1, 0].double().sub(most).abs().max().item() <= slack


@pytest.mark.parametrize("name", LOSSY)
def test_how_a_span_is_cut_into_slices_does_not_show(name: CodecName, monkeypatch: pytest.MonkeyPatch) -> None:
    span = span_of("bfloat16", blocks=3)
    raw = bytes_of(random_values(span, 5))
    raw[-100:] = 0xFF  # NaN: other rules apply in this slice
    whole = np.empty(make_codec(name).encoded_bytes(span), np.uint8)
    make_codec(name).encode(span, raw, whole)
    monkeypatch.setattr(record_codec, "SLICE_ELEMENTS", 5000)  # two records
    cut = np.empty_like(whole)
    make_codec(name).encode(span, raw, cut)
    assert np.array_equal(whole, cut)
    assert np.array_equal(round_trip(name, span, raw), round_trip(name, span, raw))


@pytest.mark.parametrize("name", LOSSY)
def test_one_codec_serves_spans_of_any_size_in_any_order(name: CodecName) -> None:
    codec = make_codec(name)
    for blocks, dtype in ((1, "float16"), (4, "float32"), (2, "bfloat16")):
        span = span_of(dtype, blocks=blocks)
        raw = bytes_of(random_values(span, blocks))
        encoded, out = np.empty(codec.encoded_bytes(span), np.uint8), np.empty(span.raw_bytes, np.uint8)
        codec.encode(span, raw, encoded)
        codec.decode(span, encoded, out)
        assert np.array_equal(out, round_trip(name, span, raw))


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_any_bytes_decode_without_an_error(name: CodecName, dtype: str, seed: int) -> None:
    span = span_of(dtype, blocks=1, layers=1)
    codec = make_codec(name)
    encoded = np.random.default_rng(seed).integers(0, 256, codec.encoded_bytes(span), dtype=np.uint8)
    codec.decode(span, encoded, np.empty(span.raw_bytes, np.uint8))


@pytest.mark.parametrize("name", CodecName)
def test_wrong_arrays_are_refused_by_name_and_nothing_is_written(name: CodecName) -> None:
    span = span_of("float16")
    codec = make_codec(name)
    raw, size = np.zeros(span.raw_bytes, np.uint8), codec.encoded_bytes(span)
    out = np.full(size, 7, np.uint8)
    frozen = raw.copy()
    frozen.flags.writeable = False
    for bad in (raw[:-1], raw.view(np.int8), np.zeros((span.raw_bytes, 2), np.uint8)[:, 0], raw[None], frozen):
        with pytest.raises(ValueError, match=f"raw: need {span.raw_bytes}"):
            codec.encode(span, bad, out)
    with pytest.raises(ValueError, match=f"out: need {size}"):
        codec.encode(span, raw, out[:-1])
    with pytest.raises(ValueError, match="need"):
        codec.decode(span, out[:-1], raw)
    assert bool((out == 7).all())
    assert not raw.any()


def test_an_array_off_its_alignment_is_refused() -> None:
    span = span_of("float16")
    with pytest.raises(ValueError, match="raw: must lie at a multiple of 16"):
        make_codec(CodecName.INT8).encode(
            span, np.zeros(span.raw_bytes + 1, np.uint8)[1:], np.zeros(span.raw_bytes, np.uint8)
        )
