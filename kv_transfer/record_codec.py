"""Codes and expands KV with torch on a CPU, a slice of records at a time, in working memory that is kept.

Knows where a record has its sections; quantise.py has the sums. Knows no link, and no policy.

Shape letters: N records (blocks x layers), H KV heads, T block_tokens, D head_dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from twinpool.kv_transfer.codec import Codec, CodecName, CodedSpan
from twinpool.kv_transfer.codec_format import (
    ALIGN_BYTES,
    CODE_BITS,
    PEAK_CODE,
    GroupRecord,
    TokenRecord,
    encoded_bytes,
    record_bytes,
    value_group,
)
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.quantise import (
    FP8_WIDENED,
    Groups,
    encode_groups,
    encode_tokens,
    pack,
    unpack,
    widen_fp8,
)
from twinpool.model.kv_layout import KVLayout

SLICE_ELEMENTS = 1024 * 1024  # 4 MiB of float32; with fewer, the number of torch calls costs more than the cache saves


def make_codec(name: CodecName) -> Codec:
    """A codec of that name, for one thread at a time: it keeps its working memory."""
    match name:
        case CodecName.RAW:
            return RawCodec()
        case CodecName.INT8 | CodecName.FP8:
            return TokenCodec(name)
        case CodecName.INT4 | CodecName.INT2:
            return GroupCodec(name)


@dataclass(frozen=True, slots=True)
class RawCodec:
    """Copies. See Codec."""

    name: CodecName = CodecName.RAW

    def encoded_bytes(self, span: CodedSpan) -> int:
        """See Codec."""
        return span.raw_bytes

    def encode(self, span: CodedSpan, raw: Bytes, out: Bytes) -> None:
        """See Codec. Arrays may lie anywhere."""
        _check("raw", raw, span.raw_bytes, 1)
        _check("out", out, span.raw_bytes, 1)
        out[:] = raw

    def decode(self, span: CodedSpan, encoded: Bytes, out: Bytes) -> None:
        """See Codec. Arrays may lie anywhere."""
        self.encode(span, encoded, out)


class _Scratch:
    """Memory for the intermediate values of a slice, kept from one to the next: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._words = torch.empty(0, dtype=torch.int32)
        self._halves = torch.empty(0, dtype=torch.int16)

    def floats(self, shape: torch.Size) -> Tensor:
        """Uninitialised float32."""
        if self._words.numel() < shape.numel():
            self._words = torch.empty(shape.numel(), dtype=torch.int32)
        return self._words[: shape.numel()].view(torch.float32).view(shape)

    def halves(self, shape: torch.Size) -> Tensor:
        """Uninitialised int16."""
        if self._halves.numel() < shape.numel():
            self._halves = torch.empty(shape.numel(), dtype=torch.int16)
        return self._halves[: shape.numel()].view(shape)

    def bytes(self, shape: torch.Size) -> Tensor:
        """Uninitialised int8; the same memory as ``halves``."""
        self.halves(torch.Size((-(-shape.numel() // 2),)))
        return self._halves.view(torch.int8)[: shape.numel()].view(shape)


class _RecordCodec(ABC):
    """A codec of records: checks the arrays, cuts them into slices of records, and copies the partial block's bytes."""

    def __init__(self, name: CodecName) -> None:
        self.name: Final = name
        self._scratch = _Scratch()

    def encoded_bytes(self, span: CodedSpan) -> int:
        """See Codec."""
        return encoded_bytes(self.name, span)

    def encode(self, span: CodedSpan, raw: Bytes, out: Bytes) -> None:
        """See Codec."""
        layout = span.layout
        _check("raw", raw, span.raw_bytes, ALIGN_BYTES)
        _check("out", out, self.encoded_bytes(span), ALIGN_BYTES)
        for raw_NB, out_NB in self._slices(span, raw, out):
            self._encode_records(layout, _as_values(raw_NB, layout), out_NB)
        self._copy_partial(span, raw, out, layout.block_layer_bytes, record_bytes(self.name, layout))

    def decode(self, span: CodedSpan, encoded: Bytes, out: Bytes) -> None:
        """See Codec."""
        layout = span.layout
        _check("encoded", encoded, self.encoded_bytes(span), ALIGN_BYTES)
        _check("out", out, span.raw_bytes, ALIGN_BYTES)
        for out_NB, encoded_NB in self._slices(span, out, encoded):
            self._decode_records(layout, encoded_NB, _as_values(out_NB, layout))
        self._copy_partial(span, encoded, out, record_bytes(self.name, layout), layout.block_layer_bytes)

    def _slices(self, span: CodedSpan, raw: Bytes, encoded: Bytes) -> Iterator[tuple[Tensor, Tensor]]:
        """The raw and the coded bytes of a few records at a time, one record in each row."""
        layout, num_records = span.layout, span.num_records
        raw_NB = _rows(raw, num_records, layout.block_layer_bytes)
        encoded_NB = _rows(encoded, num_records, record_bytes(self.name, layout))
        step = max(1, SLICE_ELEMENTS // (2 * layout.num_kv_heads * layout.block_tokens * layout.head_dim))
        for first in range(0, num_records, step):
            yield raw_NB[first : first + step], encoded_NB[first : first + step]

    @staticmethod
    def _copy_partial(span: CodedSpan, source: Bytes, target: Bytes, source_record: int, target_record: int) -> None:
        target[span.num_records * target_record :] = source[span.num_records * source_record :]

    @abstractmethod
    def _encode_records(self, layout: KVLayout, raw_N2HTD: Tensor, out_NB: Tensor) -> None:
        """Write the records of ``raw``, of the layout's dtype, into the rows of ``out``."""

    @abstractmethod
    def _decode_records(self, layout: KVLayout, encoded_NB: Tensor, out_N2HTD: Tensor) -> None:
        """The inverse."""


class TokenCodec(_RecordCodec):
    """int8 and fp8: a scale for each token of each head."""

    def _encode_records(self, layout: KVLayout, raw_N2HTD: Tensor, out_NB: Tensor) -> None:
        scale_N2HT, codes_N2HTD = self._sections(layout, out_NB)
        out_NB[:, TokenRecord.of(layout).padding_at :] = 0
        x_N2HTD = self._scratch.floats(raw_N2HTD.shape).copy_(raw_N2HTD)
        encode_tokens(x_N2HTD, scale_N2HT, PEAK_CODE[self.name])
        codes_N2HTD.copy_(x_N2HTD.round_() if self.name is CodecName.INT8 else x_N2HTD)

    def _decode_records(self, layout: KVLayout, encoded_NB: Tensor, out_N2HTD: Tensor) -> None:
        scale_N2HT, codes_N2HTD = self._sections(layout, encoded_NB)
        x_N2HTD = self._scratch.floats(codes_N2HTD.shape)
        if self.name is CodecName.INT8:
            x_N2HTD.copy_(codes_N2HTD)
        else:
            x_N2HTD.copy_(widen_fp8(codes_N2HTD, self._scratch.halves(codes_N2HTD.shape)))
            scale_N2HT = scale_N2HT * FP8_WIDENED
        out_N2HTD.copy_(x_N2HTD.mul_(scale_N2HT.unsqueeze(-1)))

    def _sections(self, layout: KVLayout, records_NB: Tensor) -> tuple[Tensor, Tensor]:
        """Views of scales ``[N, 2, H, T]`` and codes ``[N, 2, H, T, D]``."""
        shape = (2, layout.num_kv_heads, layout.block_tokens)
        code_dtype = torch.int8 if self.name is CodecName.INT8 else torch.float8_e4m3fn
        codes_at = TokenRecord.of(layout).codes_at
        return (
            _section(records_NB, 0, torch.float32, shape),
            _section(records_NB, codes_at, code_dtype, (*shape, layout.head_dim)),
        )


class GroupCodec(_RecordCodec):
    """int4 and int2: a scale and a zero for each channel of K in a block, and for groups of channels of a token's V."""

    def _encode_records(self, layout: KVLayout, raw_N2HTD: Tensor, out_NB: Tensor) -> None:
        out_NB[:, GroupRecord.of(self.name, layout).padding_at :] = 0
        x_N2HTD = self._scratch.floats(raw_N2HTD.shape).copy_(raw_N2HTD)
        for groups in self._groups(layout, out_NB, x_N2HTD):
            encode_groups(groups, float(2 ** CODE_BITS[self.name] - 1))
        codes_N2HTD = self._scratch.bytes(x_N2HTD.shape).copy_(x_N2HTD)
        pack(codes_N2HTD.view(torch.uint8), CODE_BITS[self.name], self._codes(layout, out_NB))

    def _decode_records(self, layout: KVLayout, encoded_NB: Tensor, out_N2HTD: Tensor) -> None:
        x_N2HTD = self._scratch.floats(out_N2HTD.shape)
        unpack(self._codes(layout, encoded_NB), CODE_BITS[self.name], x_N2HTD)
        for groups in self._groups(layout, encoded_NB, x_N2HTD):
            groups.values.mul_(groups.scale.float()).add_(groups.zero.float())
        if layout.dtype == "float16":  # the others never get there: LARGEST is far below
            largest = torch.finfo(torch.float16).max
            x_N2HTD.clamp_(-largest, largest)
        out_N2HTD.copy_(x_N2HTD)

    def _groups(self, layout: KVLayout, records_NB: Tensor, x_N2HTD: Tensor) -> tuple[Groups, Groups]:
        record, size = GroupRecord.of(self.name, layout), value_group(self.name, layout.head_dim)
        keys = (layout.num_kv_heads, 1, layout.head_dim)
        values = (layout.num_kv_heads, layout.block_tokens, layout.head_dim // size, 1)
        dtype = _DTYPE[layout.dtype]
        scale_dtype = torch.float16 if dtype is torch.float16 else torch.bfloat16
        return (
            Groups(
                _section(records_NB, 0, dtype, keys),
                _section(records_NB, record.key_scales_at, scale_dtype, keys),
                x_N2HTD[:, 0],
                -2,
            ),
            Groups(
                _section(records_NB, record.value_zeros_at, dtype, values),
                _section(records_NB, record.value_scales_at, scale_dtype, values),
                x_N2HTD[:, 1].view(-1, *values[:-1], size),
                -1,
            ),
        )

    def _codes(self, layout: KVLayout, records_NB: Tensor) -> Tensor:
        row_bytes = layout.head_dim * CODE_BITS[self.name] // 8
        shape = (2, layout.num_kv_heads, layout.block_tokens, row_bytes)
        return _section(records_NB, GroupRecord.of(self.name, layout).codes_at, torch.uint8, shape)


_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _rows(data: Bytes, num_records: int, num_bytes: int) -> Tensor:
    return torch.from_numpy(data[: num_records * num_bytes]).view(num_records, num_bytes)


def _as_values(raw_NB: Tensor, layout: KVLayout) -> Tensor:
    shape = (2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
    return _section(raw_NB, 0, _DTYPE[layout.dtype], shape)


def _section(records_NB: Tensor, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """View the bytes from ``offset`` on in each row as ``[N, *shape]``."""
    end = offset + prod(shape) * dtype.itemsize
    return records_NB[:, offset:end].view(dtype).view(-1, *shape)


def _check(name: str, data: Bytes, num_bytes: int, align_bytes: int) -> None:
    flags = data.flags
    if data.dtype != "uint8" or data.shape != (num_bytes,) or not (flags.c_contiguous and flags.writeable):
        raise ValueError(f"{name}: need {num_bytes} contiguous, writable bytes, not {data.dtype} of shape {data.shape}")
    if data.ctypes.data % align_bytes:
        raise ValueError(f"{name}: must lie at a multiple of {align_bytes} bytes")
