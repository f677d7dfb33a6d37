"""Codes the chunks of one end of a link: a codec of each name once it is needed, and memory for what is not coded.

Imports torch with the first codec that loses something. Knows no link and touches no block.
"""

import numpy as np

from twinpool.kv_transfer.codec import Codec, CodecName
from twinpool.kv_transfer.codec_format import ALIGN_BYTES
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout


def aligned_bytes(num_bytes: int) -> Bytes:
    """Uninitialised memory as codecs need it."""
    memory = np.empty(num_bytes + ALIGN_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % ALIGN_BYTES
    return memory[first : first + num_bytes]


class Coder:
    """For one thread: it keeps its codecs and one piece of raw memory."""

    def __init__(self) -> None:
        self._codecs: dict[CodecName, Codec] = {}
        self._raw = aligned_bytes(0)

    def raw(self, span: Span, layout: KVLayout) -> Bytes:
        """Memory for the bytes of a span as ``gather`` writes them; the same one for every span.

        ``layout`` here and below is that of the bytes: of the heads that move, and no others.
        """
        num_bytes = span.num_bytes(layout)
        if len(self._raw) < num_bytes:
            self._raw = aligned_bytes(num_bytes)
        return self._raw[:num_bytes]

    def encode(self, coding: Coding, span: Span, layout: KVLayout, raw: Bytes, out: Bytes) -> None:
        """Code a span's raw bytes over all of ``out``, ``coding.num_bytes(span, layout)`` bytes. Not for raw KV.

        Raises:
            ValueError: see Codec.
        """
        self._codec(coding.codec).encode(coding.coded_span(span, layout), raw, out)

    def decode(self, coding: Coding, span: Span, layout: KVLayout, encoded: Bytes) -> Bytes:
        """The raw bytes that ``encoded`` stands for, in the memory of ``raw``. Not for raw KV.

        Raises:
            ValueError: see Codec.
        """
        raw = self.raw(span, layout)
        self._codec(coding.codec).decode(coding.coded_span(span, layout), encoded, raw)
        return raw

    def _codec(self, name: CodecName) -> Codec:
        if name not in self._codecs:
            from twinpool.kv_transfer.record_codec import make_codec

            self._codecs[name] = make_codec(name)
        return self._codecs[name]
