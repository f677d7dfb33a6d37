"""How the KV of one handoff is coded, and what size that gives each of its spans: both ends derive it alike.

Pure. Knows no byte of any format and computes nothing; coder.py does.
"""

from dataclasses import dataclass

from twinpool.kv_transfer.codec import CodecName, CodedSpan, is_lossless
from twinpool.kv_transfer.codec_format import encoded_bytes
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class Coding:
    """A codec, and the tokens whose KV the request has: they say whether its last block is partial.

    ``Coding()`` stands for raw KV, whatever the number of tokens, which then matters to no size; see ``of``.
    """

    codec: CodecName = CodecName.RAW
    num_tokens: int = 0

    @classmethod
    def of(cls, codec: CodecName, num_tokens: int) -> "Coding":
        """The one value for this codec and request."""
        return cls() if is_lossless(codec) else cls(codec, num_tokens)

    @property
    def is_raw(self) -> bool:
        """Whether the bytes on the link are those of the blocks."""
        return is_lossless(self.codec)

    def coded_span(self, span: Span, layout: KVLayout) -> CodedSpan:
        """What is coded of a span. Not for raw KV.

        Raises:
            ValueError: the span is empty, or has a block that holds no token of the request.
        """
        return CodedSpan.of(span, layout, self.num_tokens)

    def num_bytes(self, span: Span, layout: KVLayout) -> int:
        """Size of a span on the link, header not counted.

        Raises:
            ValueError: as ``coded_span``, or the codec does not fit the layout.
        """
        if self.is_raw:
            return span.num_bytes(layout)
        return encoded_bytes(self.codec, self.coded_span(span, layout))


RAW = Coding()
