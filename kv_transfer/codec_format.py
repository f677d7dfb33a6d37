"""The coded form of KV, to the byte, and its sizes: what CPU and GPU implementations must agree on.

Pure. Knows offsets and constants; quantise.py and record_codec.py compute.

A span of blocks x layers becomes one record for each (block, layer), in the order of the raw bytes, all of one size;
then a partial last block's raw bytes, unchanged. Sizes follow from codec and layout alone. A record lies at a multiple
of 16 bytes and is padded with zeros to one. Numbers are little-endian. H KV heads, T block_tokens, D head_dim; index 0
of [2] is K, 1 is V; the last axis runs fastest; sections follow each other without gaps:

    raw         the bytes themselves
    int8, fp8   scale [2, H, T] float32 | code [2, H, T, D] one byte each
    int4, int2  K zero [H, D] | V zero [H, T, G], both of the layout's dtype | K scale [H, D] | V scale [H, T, G]
                | code [2, H, T, D / P] bytes, of P codes each

Arithmetic is IEEE float32, to nearest with ties to even, without fused multiply-add, flushing or fast division; raw
values are widened to float32, which is exact. ``rint`` rounds half to even. ``LARGEST`` = 2^126, ``TINY`` = 2^-100.

int8, fp8: one scale for each token of each head, of K and of V.
    peak = min(max |x|, LARGEST)    scale = peak / Q, but 0 if peak < TINY    inverse = 1 / scale, but 0 if scale = 0
    Q = 127 (int8), 448 (fp8)
    int8: code = rint(x * inverse), held to [-127, 127], two's complement
    fp8:  code = x * inverse held to [-448, 448], to e4m3fn, to nearest with ties to even; a zero keeps its sign
    decoded = code * scale

int4, int2 (KIVI, arXiv:2402.02750): K in groups of one channel over the block's T tokens; V in groups of D / G
neighbouring channels of one token, D / G being the greatest divisor of D that is a multiple of 4 and at most 64 (int4)
or 32 (int2). M = 15 (int4), 3 (int2).
    zero = min x, hi = max x, each held to [-LARGEST, LARGEST]; a zero of either sign is stored as +0
    step = (hi - zero) / M    scale = the least value of the scale's type that is >= step, but 0 if hi - zero < TINY
    The scale's type is float16 in float16 layouts, else bfloat16. So ``code * scale`` is exact, fused or not.
    inverse = 1 / scale, but 0 if scale = 0    code = rint((x - zero) * inverse), held to [0, M]
    decoded = code * scale + zero, held to the finite range of the layout's dtype
    P = 8 / bits codes in a byte: byte j of a (head, token) holds, from its lowest bits up, the codes of channels
    j, j + D/P, j + 2D/P, ...: parts of a row, not neighbours, so that packing needs no shuffling.

Decoded values are rounded to the layout's dtype, to nearest with ties to even.

Loss: per element at most scale / 2 (int8, int4, int2), or max(|x| / 16, scale / 1024) (fp8), plus float32 and dtype
rounding; magnitudes above LARGEST, which float16 does not have, saturate. All-zero groups and, in int4 and int2, groups
of one value come back exactly (but for a zero's sign; peaks or ranges below TINY count as none). A group with a NaN or
an infinity has the scale NaN (0x7fc00000, 0x7fc0, 0x7e00), zeros in zero and code, and decodes to NaN throughout: what
was sick stays sick, and never becomes a number. Its neighbours are not touched. fp8's own NaN codes are never written.

Why these types: a float32 scale costs 1.5 % of int8 at D = 128 over float16, and has no range to fall out of (float16
loses digits below peaks of 0.008 at Q = 127). A zero in the layout's own dtype is exact, which a rounded one is not
where a channel of K lies far from 0. A scale that is rounded up always reaches ``hi``, and is never 0 by accident.
"""

from dataclasses import dataclass

from twinpool.kv_transfer.codec import CodecName, CodedSpan
from twinpool.model.kv_layout import ITEM_BYTES, KVLayout

ALIGN_BYTES = 16
LARGEST = 2.0**126
TINY = 2.0**-100
PEAK_CODE = {CodecName.INT8: 127.0, CodecName.FP8: 448.0}
CODE_BITS = {CodecName.INT8: 8, CodecName.FP8: 8, CodecName.INT4: 4, CodecName.INT2: 2}
MAX_VALUE_GROUP = {CodecName.INT4: 64, CodecName.INT2: 32}
CHANNEL_MULTIPLE = 4  # head_dim is one of it: the four codes of a byte are then of one row
TOKEN_SCALE_BYTES = 4
GROUP_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Where an int8 or fp8 record has its sections."""

    num_scales: int
    code_bytes: int

    @classmethod
    def of(cls, layout: KVLayout) -> "TokenRecord":
        num_scales = 2 * layout.num_kv_heads * layout.block_tokens
        return cls(num_scales, num_scales * layout.head_dim)

    @property
    def codes_at(self) -> int:
        """The scales are at 0."""
        return self.num_scales * TOKEN_SCALE_BYTES

    @property
    def padding_at(self) -> int:
        return self.codes_at + self.code_bytes

    @property
    def num_bytes(self) -> int:
        return _aligned(self.padding_at)


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Where an int4 or int2 record has its sections."""

    num_key_groups: int
    num_value_groups: int
    zero_bytes: int  # of one zero
    code_bytes: int

    @classmethod
    def of(cls, name: CodecName, layout: KVLayout) -> "GroupRecord":
        rows = layout.num_kv_heads * layout.block_tokens
        return cls(
            num_key_groups=layout.num_kv_heads * layout.head_dim,
            num_value_groups=rows * (layout.head_dim // value_group(name, layout.head_dim)),
            zero_bytes=ITEM_BYTES[layout.dtype],
            code_bytes=2 * rows * layout.head_dim * CODE_BITS[name] // 8,
        )

    @property
    def value_zeros_at(self) -> int:
        """The zeros of K are at 0."""
        return self.num_key_groups * self.zero_bytes

    @property
    def key_scales_at(self) -> int:
        return self.value_zeros_at + self.num_value_groups * self.zero_bytes

    @property
    def value_scales_at(self) -> int:
        return self.key_scales_at + self.num_key_groups * GROUP_SCALE_BYTES

    @property
    def codes_at(self) -> int:
        return self.value_scales_at + self.num_value_groups * GROUP_SCALE_BYTES

    @property
    def padding_at(self) -> int:
        return self.codes_at + self.code_bytes

    @property
    def num_bytes(self) -> int:
        return _aligned(self.padding_at)


def value_group(name: CodecName, head_dim: int) -> int:
    """How many neighbouring channels of V share a scale in int4 and int2; ``head_dim`` is a multiple of 4."""
    sizes = range(CHANNEL_MULTIPLE, MAX_VALUE_GROUP[name] + 1, CHANNEL_MULTIPLE)
    return max(size for size in sizes if head_dim % size == 0)


def record_bytes(name: CodecName, layout: KVLayout) -> int:
    """Size of the coded form of one full (block, layer).

    Raises:
        ValueError: ``head_dim`` is no multiple of 4, or the layout is so small that coding it would make it larger.
    """
    if name is CodecName.RAW:
        return layout.block_layer_bytes
    if layout.head_dim % CHANNEL_MULTIPLE:
        raise ValueError(f"codec {name}: head_dim {layout.head_dim} is not a multiple of {CHANNEL_MULTIPLE}")
    num_bytes = (TokenRecord.of(layout) if name in PEAK_CODE else GroupRecord.of(name, layout)).num_bytes
    if num_bytes > layout.block_layer_bytes:
        raise ValueError(
            f"codec {name}: {layout.block_layer_bytes} bytes of {layout.block_tokens} tokens x {layout.head_dim} "
            f"would become {num_bytes}"
        )
    return num_bytes


def encoded_bytes(name: CodecName, span: CodedSpan) -> int:
    """Exact size of a span on the wire, as of ``Codec.encoded_bytes``. Raises ValueError as ``record_bytes`` does."""
    partial_bytes = span.is_last_partial * span.num_layers * span.layout.block_layer_bytes
    return span.num_records * record_bytes(name, span.layout) + partial_bytes


def compression_ratio(name: CodecName, layout: KVLayout) -> float:
    """Raw bytes for each coded byte of full blocks."""
    return layout.block_layer_bytes / record_bytes(name, layout)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
