"""Measures how fast this machine codes KV of a layout, for the choice of a codec.

Knows no link and decides nothing. Values are made up: how long coding takes does not depend on them.
"""

import time
from collections.abc import Callable

import numpy as np

from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.kv_transfer.codec_choice import CodecRates
from twinpool.kv_transfer.codec_format import compression_ratio
from twinpool.kv_transfer.coder import aligned_bytes
from twinpool.kv_transfer.header import Bytes
from twinpool.model.kv_layout import KVLayout

SAMPLE_BYTES = 2 << 20
_NUM_RUNS = 2  # the second one counts: the first also takes memory


def measure_codec(name: CodecName, layout: KVLayout, clock: Callable[[], float] = time.perf_counter) -> CodecRates:
    """Code and decode some MiB on the calling thread; takes some tens of milliseconds.

    Raises:
        ValueError: the codec does not fit the layout.
    """
    from twinpool.kv_transfer.record_codec import make_codec

    codec = make_codec(name)
    span = CodedSpan(layout, max(1, SAMPLE_BYTES // layout.block_layer_bytes), 1)
    raw, encoded = _values(span), aligned_bytes(codec.encoded_bytes(span))
    for _ in range(_NUM_RUNS):
        started_s = clock()
        codec.encode(span, raw, encoded)
        coded_s = clock()
        codec.decode(span, encoded, raw)
        ended_s = clock()
    encode_s, decode_s = max(coded_s - started_s, 1e-9), max(ended_s - coded_s, 1e-9)
    ratio = compression_ratio(name, layout)
    return CodecRates(name, ratio, span.raw_bytes / encode_s, span.raw_bytes / decode_s)


def _values(span: CodedSpan) -> Bytes:
    raw = aligned_bytes(span.raw_bytes)
    if span.layout.dtype == "float32":
        values = raw.view(np.float32)
        values[:] = np.random.default_rng(0).standard_normal(len(values), dtype=np.float32)
    elif span.layout.dtype == "float16":
        halves = raw.view(np.float16)
        halves[:] = np.random.default_rng(0).standard_normal(len(halves), dtype=np.float32)
    else:
        words = raw.view(np.uint16)  # bfloat16 is the upper half of a float32
        normal = np.random.default_rng(0).standard_normal(len(words), dtype=np.float32)
        words[:] = normal.view(np.uint32) >> 16
    return raw
