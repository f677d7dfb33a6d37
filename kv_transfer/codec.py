"""Names the codecs that KV may cross a link in, says how faithful each is, and what an object that codes must do.

Pure. Knows no byte of any format (codec_format.py has them) and not who may choose what (codec_choice.py).

Blocks and loss. What a request's blocks went through is part of their name: a sequence has one codec, the coarsest that
any of its blocks came through (``coarsest``; KV computed from lossy KV is lossy too), and its blocks are registered
under ``root_hash(codec=quality(that codec))``. A request looks blocks up, position by position, under the roots of
``qualities_down_to(the coarsest codec it allows)`` and of no other. One that asked for raw so never finds a lossy
block, whose name descends from another root; one that allows loss finds raw blocks first. The source of a handoff
keeps what it computed, whatever codec it sent it in.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout

QUALITY_VERSION = 1  # counts up when a codec's decoded values change: older blocks are then no longer the same thing


class CodecName(StrEnum):
    """The codecs, from the most faithful to the coarsest."""

    RAW = "raw"
    INT8 = "int8"
    FP8 = "fp8"
    INT4 = "int4"
    INT2 = "int2"


_BY_LOSS = tuple(CodecName)


def is_lossless(name: CodecName) -> bool:
    """Whether decoding gives back the very bytes that were encoded."""
    return name is CodecName.RAW


def quality(name: CodecName) -> str:
    """What the block hash tells apart: the field ``codec`` of ``root_hash`` for blocks that came through ``name``."""
    return name.value if is_lossless(name) else f"{name.value}/{QUALITY_VERSION}"


def qualities_down_to(name: CodecName) -> tuple[str, ...]:
    """The qualities of blocks that a request may be given which allows ``name``: best first, raw always among them."""
    return tuple(quality(better) for better in _BY_LOSS[: _BY_LOSS.index(name) + 1])


def coarsest(names: Iterable[CodecName]) -> CodecName:
    """The one that a sequence counts as whose blocks came through all of ``names``; raw for none."""
    return max(names, key=_BY_LOSS.index, default=CodecName.RAW)


@dataclass(frozen=True, slots=True)
class CodedSpan:
    """The shape of what is coded as one: blocks x layers of one request, in the order ``KVCache.gather`` writes them.

    Both ends derive it from what the control channel announced; no field of it is read from a link.

    Raises:
        ValueError: the span is empty.
    """

    layout: KVLayout
    num_blocks: int
    num_layers: int
    is_last_partial: bool = False  # the last block has slots that were never written: it stays raw

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.num_layers < 1:
            raise ValueError(f"{self.num_blocks} blocks of {self.num_layers} layers: nothing to code")

    @classmethod
    def of(cls, span: Span, layout: KVLayout, num_tokens: int) -> "CodedSpan":
        """The shape of a span of a request whose KV holds ``num_tokens`` tokens.

        Raises:
            ValueError: the span is empty, or has a block that holds no token.
        """
        if (span.end_block - 1) * layout.block_tokens >= num_tokens:
            raise ValueError(f"{num_tokens} tokens do not reach into block {span.end_block - 1}")
        is_last_partial = span.end_block * layout.block_tokens > num_tokens
        return cls(layout, span.num_blocks, span.num_layers, is_last_partial)

    @property
    def num_records(self) -> int:
        """(block, layer) pairs that are coded; the rest, a partial block's, stays raw."""
        return (self.num_blocks - self.is_last_partial) * self.num_layers

    @property
    def raw_bytes(self) -> int:
        """What ``gather`` writes."""
        return self.num_blocks * self.num_layers * self.layout.block_layer_bytes


class Codec(Protocol):
    """Shrinks the bytes of a span for the wire and expands them again. For one thread: it keeps working memory."""

    @property
    def name(self) -> CodecName: ...

    def encoded_bytes(self, span: CodedSpan) -> int:
        """The exact size on the wire, never above ``span.raw_bytes``.

        Raises:
            ValueError: the codec does not fit the span's layout.
        """
        ...

    def encode(self, span: CodedSpan, raw: Bytes, out: Bytes) -> None:
        """Write the coded form of ``raw`` over all of ``out``.

        Args:
            raw: ``span.raw_bytes`` bytes, as ``gather`` lays them out; unchanged.
            out: ``encoded_bytes(span)`` bytes that do not overlap ``raw``.

        Raises:
            ValueError: the codec does not fit the layout, or an array is not as described, contiguous, writable and
                aligned to ``ALIGN_BYTES``. Nothing was written.
        """
        ...

    def decode(self, span: CodedSpan, encoded: Bytes, out: Bytes) -> None:
        """Write what ``encoded`` stands for over all of ``out``, as ``scatter`` takes it.

        Sizes and errors as in ``encode``, the other way round. Any bytes decode to something: check their digest first.
        """
        ...
