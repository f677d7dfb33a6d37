"""Both ends give a span the same size on the link, and none to a span that the request does not have."""

import numpy as np
import pytest

from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.kv_transfer.coder import Coder, aligned_bytes
from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.record_codec import make_codec
from twinpool.model.kv_layout import HeadRange, KVLayout

from .fakes import LAYOUT

LOSSY = [name for name in CodecName if name is not CodecName.RAW]


def test_raw_kv_has_one_coding_whatever_its_tokens():
    assert Coding.of(CodecName.RAW, 22) == RAW
    assert RAW.num_bytes(Span(0, 3, 4, 6), LAYOUT) == 6 * LAYOUT.block_layer_bytes


@pytest.mark.parametrize("codec", LOSSY)
def test_a_size_is_what_the_codec_writes_and_a_partial_block_counts_raw(codec: CodecName):
    coding = Coding.of(codec, 22)  # blocks of 4: the sixth is partial
    full, last = Span(0, 3, 4, 5), Span(0, 3, 5, 6)
    assert coding.num_bytes(full, LAYOUT) == make_codec(codec).encoded_bytes(CodedSpan(LAYOUT, 1, 3))
    assert coding.num_bytes(full, LAYOUT) < full.num_bytes(LAYOUT)
    assert coding.num_bytes(last, LAYOUT) == last.num_bytes(LAYOUT)
    both = Span(0, 3, 4, 6)
    assert coding.num_bytes(both, LAYOUT) == coding.num_bytes(full, LAYOUT) + coding.num_bytes(last, LAYOUT)


@pytest.mark.parametrize(
    ("span", "layout"),
    [
        (Span(0, 3, 0, 7), LAYOUT),  # beyond the request's last block
        (Span(0, 3, 2, 2), LAYOUT),
        (Span(0, 1, 0, 1), KVLayout(1, 1, 8, 6, "float32", "m")),  # no codec takes a head of 6
    ],
)
def test_a_span_without_a_size_is_an_error(span: Span, layout: KVLayout):
    with pytest.raises(ValueError, match=r"\d"):
        Coding.of(CodecName.INT8, 22).num_bytes(span, layout)


def test_one_coder_serves_spans_of_any_size_and_any_codec_in_turn():
    coder, rng = Coder(), np.random.default_rng(1)
    for codec in [*LOSSY, *LOSSY]:
        for span in (Span(0, 3, 0, 2), Span(1, 2, 4, 6), Span(0, 3, 0, 6)):
            coding = Coding.of(codec, 22)
            raw = coder.raw(span, LAYOUT)
            values = raw.view(np.float32)
            values[:] = rng.standard_normal(len(values), dtype=np.float32)
            before, encoded = values.copy(), aligned_bytes(coding.num_bytes(span, LAYOUT))
            coder.encode(coding, span, LAYOUT, raw, encoded)
            after = coder.decode(coding, span, LAYOUT, encoded).view(np.float32)
            assert 0 < np.abs(after - before).max() < np.ptp(before) or span == Span(1, 2, 5, 6)


def test_memory_for_codecs_is_aligned_and_of_the_size_asked_for():
    for num_bytes in (0, 1, 15, 4096, 12345):
        memory = aligned_bytes(num_bytes)
        assert (len(memory), memory.ctypes.data % 16) == (num_bytes, 0)


@pytest.mark.parametrize("codec", LOSSY)
def test_a_head_is_coded_alike_whatever_other_heads_move_with_it(codec: CodecName):
    """So workers of any shape hand over the very same numbers."""
    span, coding = Span(0, 3, 0, 6), Coding.of(codec, 22)
    shape = (6, 3, 2, LAYOUT.num_kv_heads, LAYOUT.block_tokens, LAYOUT.head_dim)
    values = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)

    def decoded(heads: HeadRange) -> np.ndarray:
        coder, layout = Coder(), LAYOUT.of_heads(heads)
        raw, coded = coder.raw(span, layout), aligned_bytes(coding.num_bytes(span, layout))
        some = values[:, :, :, heads.first : heads.end]
        raw[:] = np.ascontiguousarray(some).view(np.uint8).ravel()
        coder.encode(coding, span, layout, raw, coded)
        return coder.decode(coding, span, layout, coded).view(np.float32).reshape(some.shape).copy()

    apart = [decoded(HeadRange(head, head + 1)) for head in range(LAYOUT.num_kv_heads)]
    assert np.array_equal(np.concatenate(apart, axis=3), decoded(HeadRange(0, LAYOUT.num_kv_heads)))
