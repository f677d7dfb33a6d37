"""Sizes follow from the layout, and the bytes are the ones that the format describes."""

from collections.abc import Callable
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.kv_transfer.codec_format import compression_ratio, encoded_bytes, record_bytes, value_group
from twinpool.kv_transfer.record_codec import make_codec
from twinpool.model.kv_layout import KVLayout

from .slow_codec import SlowCodec

LOSSY = [name for name in CodecName if name is not CodecName.RAW]
DTYPES = ["float32", "bfloat16", "float16"]


def layout(heads: int, tokens: int, dim: int, dtype: str, layers: int = 1) -> KVLayout:
    return KVLayout(layers, heads, tokens, dim, dtype, "m")


def encode(name: CodecName, span: CodedSpan, raw: bytes) -> bytes:
    codec = make_codec(name)
    out = np.full(codec.encoded_bytes(span), 0xAA, np.uint8)
    codec.encode(span, np.frombuffer(bytearray(raw), np.uint8), out)
    return out.tobytes()


def decode(name: CodecName, span: CodedSpan, encoded: bytes) -> bytes:
    out = np.full(span.raw_bytes, 0xAA, np.uint8)
    make_codec(name).decode(span, np.frombuffer(bytearray(encoded), np.uint8), out)
    return out.tobytes()


def f4(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def f2(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def b2(*values: float) -> bytes:
    """bfloat16 of values that it has exactly."""
    return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("name", "block_tokens", "ratio"),
    [
        (CodecName.RAW, 64, 1.0),
        (CodecName.INT8, 64, 1.939),
        (CodecName.FP8, 64, 1.939),
        (CodecName.INT4, 64, 3.556),
        (CodecName.INT2, 64, 5.818),
        (CodecName.INT8, 16, 1.939),
        (CodecName.INT4, 16, 3.048),
        (CodecName.INT2, 16, 4.571),
        (CodecName.INT4, 8, 2.560),
        (CodecName.INT2, 8, 3.556),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_ratio_for_heads_of_128(name: CodecName, block_tokens: int, ratio: float, dtype: str) -> None:
    assert compression_ratio(name, layout(8, block_tokens, 128, dtype, 32)) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("head_dim", "int4", "int2"),
    [(32, 32, 32), (64, 64, 32), (80, 40, 20), (96, 48, 32), (128, 64, 32), (256, 64, 32), (4, 4, 4), (68, 4, 4)],
)
def test_groups_of_values_divide_a_head_evenly(head_dim: int, int4: int, int2: int) -> None:
    assert (value_group(CodecName.INT4, head_dim), value_group(CodecName.INT2, head_dim)) == (int4, int2)


@pytest.mark.parametrize("name", CodecName)
def test_every_layout_of_a_real_model_fits_aligned_and_shrinks(name: CodecName) -> None:
    for shape in product((1, 3, 8), (8, 16, 32, 64, 128, 256), (32, 64, 80, 96, 128, 256), DTYPES):
        size = record_bytes(name, layout(*shape))
        assert size % 16 == 0
        assert size <= layout(*shape).block_layer_bytes * (1 if name is CodecName.RAW else 0.6)


@pytest.mark.parametrize("name", CodecName)
@pytest.mark.parametrize("is_last_partial", [False, True])
def test_a_span_takes_a_record_for_each_full_block_and_raw_bytes_for_a_partial_one(
    name: CodecName, is_last_partial: bool
) -> None:
    shape = layout(3, 8, 80, "float16", 5)
    span = CodedSpan(shape, 4, 2, is_last_partial)
    partial = 2 * shape.block_layer_bytes if is_last_partial else 0
    assert encoded_bytes(name, span) == (6 if is_last_partial else 8) * record_bytes(name, shape) + partial
    assert make_codec(name).encoded_bytes(span) == encoded_bytes(name, span)


@pytest.mark.parametrize("name", LOSSY)
def test_a_head_that_is_no_multiple_of_four_is_refused(name: CodecName) -> None:
    with pytest.raises(ValueError, match=f"{name}: head_dim 6"):
        record_bytes(name, layout(1, 8, 6, "float32"))


@pytest.mark.parametrize("name", [CodecName.INT4, CodecName.INT2])
def test_a_layout_that_would_grow_is_refused(name: CodecName) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* would become"):
        record_bytes(name, layout(1, 1, 4, "float16"))


# One (block, layer) of 1 head x 4 tokens x 4 channels: K then V.
K = [[0.0, 8.0, -1.0, 5.0], [15.0, 8.0, 0.0, 5.0], [7.0, 8.0, 14.0, 5.0], [3.0, 8.0, 6.5, 20.0]]
V = [[-127.0, 1.0, 0.5, 63.5], [0.0, 0.0, 0.0, 0.0], [254.0, 3.0, -1.0, 2.0], [0.0, 15.0, 30.0, 7.5]]


def test_int8_byte_by_byte() -> None:
    keys = [[127.0, -127.0, 0.5, 1.5], [63.5, 0.25, -0.25, 0.75], [0.0] * 4, [2.0, 2.0, -2.0, 0.5]]
    values = [[-127.0, 1.0, 0.5, 63.5], [0.0] * 4, [254.0, 3.0, -1.0, 2.0], [0.0, 15.0, 60.0, 7.5]]
    scales = np.array([127, 63.5, 0, 2, 127, 0, 254, 60], np.float32) / np.float32(127)
    # -127 is 0x81; 0.5, 1.5 and 63.5 go to the even 0, 2 and 64; 127 / 4 = 31.75
    expected = scales.astype("<f4").tobytes()
    expected += bytes([127, 0x81, 0, 2]) + bytes([127, 0, 0, 2]) + bytes(4) + bytes([127, 127, 0x81, 32])
    expected += bytes([0x81, 1, 0, 64]) + bytes(4) + bytes([127, 2, 0, 1]) + bytes([0, 32, 127, 16])
    assert encode(CodecName.INT8, ONE, f4(*chain.from_iterable(keys + values))) == expected


def test_fp8_byte_by_byte() -> None:
    keys = [[448.0, -224.0, 0.0, 17.0], [0.875, 0.0, -0.0, 0.4375], [0.0] * 4, [448.0, 2**-9, 2**-10, -1.0]]
    values = [
        [448.0, 19.0, 1.0, 1.0625],
        [448.0, 1.1875, -448.0, 0.5],
        [0.0, -0.0, 0.0, 0.0],
        [448.0, 3 * 2**-10, 0, 2],
    ]
    expected = f4(1.0, 2**-9, 0.0, 1.0) + f4(1.0, 1.0, 0.0, 1.0)
    # 448 is 0x7e, 224 0x76, 17 goes to the even 16 of 16 and 18, 19 to the even 20; 2^-9 is the least number
    expected += bytes([0x7E, 0xF6, 0, 0x58]) + bytes([0x7E, 0, 0x80, 0x76]) + bytes(4) + bytes([0x7E, 1, 0, 0xB8])
    expected += bytes([0x7E, 0x5A, 0x38, 0x38]) + bytes([0x7E, 0x3A, 0xFE, 0x30]) + bytes([0, 0x80, 0, 0])
    expected += bytes([0x7E, 2, 0, 0x40])
    assert encode(CodecName.FP8, ONE, f4(*chain.from_iterable(keys + values))) == expected


def test_int4_byte_by_byte() -> None:
    expected = f4(0, 8, -1, 5) + f4(-127, 0, -1, 0)  # zeros: by channel of K, by token of V
    expected += b2(1, 0, 1, 1) + b2(12.75, 0, 17, 2)  # 190.5 / 15 = 12.7 goes up to 12.75, 255 / 15 = 17
    # byte j holds channels j and j + 2; (6.5 + 1) / 1 = 7.5 goes to the even 8
    expected += bytes([0x00, 0x00, 0x1F, 0x00, 0xF7, 0x00, 0x83, 0xF0])
    # -127, 1, 0.5, 63.5: 0, 10.04, 10, 14.94 · 254, 3, -1, 2: 15, 0.24, 0, 0.18 · 0, 15, 30, 7.5: 0, 7.5, 15, 3.75
    expected += bytes([0xA0, 0xFA, 0x00, 0x00, 0x0F, 0x00, 0xF0, 0x48])
    assert encode(CodecName.INT4, ONE, f4(*chain.from_iterable(K + V))) == expected


def test_int2_byte_by_byte() -> None:
    expected = f4(0, 8, -1, 5) + f4(-127, 0, -1, 0)
    expected += b2(5, 0, 5, 5) + b2(63.5, 0, 85, 10)
    # a byte holds a row: 2 bits each, channel 0 lowest; 7.5 / 5 = 1.5 goes to the even 2
    expected += bytes([0b00_00_00_00, 0b00_00_00_11, 0b00_11_00_01, 0b11_10_00_01])
    # 0, 2.02, 2.01, 3 · nothing · 3, 0, 0, 0 · 0, 1.5, 3, 0.75
    expected += bytes([0b11_10_10_00, 0, 0b00_00_00_11, 0b01_11_10_00])
    expected += bytes(-len(expected) % 16)
    assert encode(CodecName.INT2, ONE, f4(*chain.from_iterable(K + V))) == expected


def test_scales_of_float16_layouts_are_float16_and_go_up() -> None:
    keys = [[0.0] * 4, [1.0] * 4, [0.5] * 4, [0.25] * 4] * 2
    span = CodedSpan(layout(1, 8, 4, "float16"), 1, 1)
    encoded = encode(CodecName.INT4, span, f2(*chain.from_iterable(keys + [[0.0] * 4] * 8)))
    assert encoded[: 2 * 12] == bytes(24)  # zeros
    assert encoded[24:32] == bytes.fromhex("452c") * 4  # 1 / 15 lies between 0x2c44 and 0x2c45
    assert float(np.float16(1 / 15)) < 1 / 15
    assert decode(CodecName.INT4, span, encoded)[8:10] == f2(15 * np.uint16(0x2C45).view(np.float16).astype(np.float32))


def test_raw_and_a_partial_block_are_the_bytes_themselves() -> None:
    raw = np.random.default_rng(0).bytes(2 * 128)
    assert encode(CodecName.RAW, CodedSpan(layout(1, 4, 4, "float32", 2), 1, 2), raw) == raw
    assert encode(CodecName.INT4, CodedSpan(layout(1, 4, 4, "float32", 2), 1, 2, True), raw) == raw


ONE = CodedSpan(layout(1, 4, 4, "float32"), 1, 1)

SPECIAL = [0.0, -0.0, 1.0, -1.0, 65504.0, 6e-8, 1e-30, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan]
MAKE: dict[str, Callable[[NDArray[np.float32]], bytes]] = {
    "float32": lambda x: x.astype("<f4").tobytes(),
    "bfloat16": lambda x: (x.view(np.uint32) >> 16).astype("<u2").tobytes(),  # cut, not rounded: any bits will do
    "float16": lambda x: np.clip(x, -65504, 65504).astype("<f2").tobytes(),
}


@st.composite
def small_worlds(draw: st.DrawFn) -> tuple[CodedSpan, bytes]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = layout(draw(st.integers(1, 3)), draw(st.sampled_from([4, 7])), draw(st.sampled_from([4, 12])), dtype, 2)
    span = CodedSpan(shape, draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = span.raw_bytes // (4 if dtype == "float32" else 2)
    size = np.float32(10.0 ** draw(st.sampled_from([-45, -31, -6, -3, 0, 0, 3, 30])))
    x = rng.standard_normal(count).astype(np.float32) * size
    x += np.float32(draw(st.sampled_from([0.0, 0.0, 1.0, -300.0]))) * size
    if draw(st.booleans()):
        x = np.round(x)  # ties, equal values, zeros of both signs
    for i in rng.integers(0, count, draw(st.sampled_from([0, 0, 1, 5]))):
        x[i] = rng.choice(SPECIAL)
    return span, MAKE[dtype](x)


@pytest.mark.parametrize("name", LOSSY)
@given(world=small_worlds())
@settings(max_examples=25, deadline=None)
def test_the_bytes_are_those_of_the_slow_reference(name: CodecName, world: tuple[CodedSpan, bytes]) -> None:
    span, raw = world
    with np.errstate(all="ignore"):
        slow = SlowCodec(name.value, span.layout)
        expected = slow.encode(raw)
        encoded = encode(name, span, raw)
        assert encoded == expected
        assert encode(name, span, raw) == encoded
        ours, theirs = (
            numbers(data, span.layout.dtype) for data in (decode(name, span, encoded), slow.decode(expected))
        )
    np.testing.assert_array_equal(ours, theirs)


def numbers(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if dtype == "float32" else "<f2").astype(np.float32)
