"""The coded form of KV written down a second time: one Python number at a time, with sums rounded by numpy's float32.

Shares no code with what it is compared to.
"""

from collections.abc import Iterable

import numpy as np

from twinpool.model.kv_layout import KVLayout

F = np.float32
LARGEST, TINY = F(2.0**126), F(2.0**-100)
NAN_BITS = {"float32": 0x7FC00000, "bfloat16": 0x7FC0, "float16": 0x7E00}
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def from_bits(bits: int, dtype: str) -> np.float32:
    if dtype == "float16":
        return F(np.uint16(bits).view(np.float16))
    return np.uint32(bits << 16 if dtype == "bfloat16" else bits).view(F)


def to_bits(value: np.float32, dtype: str) -> int:
    """To nearest, ties to even."""
    if np.isnan(value):
        return NAN_BITS[dtype]
    if dtype == "float16":
        return int(np.float16(value).view(np.uint16))
    bits = int(F(value).view(np.uint32))
    if dtype == "float32":
        return bits
    low, high = bits & 0xFFFF, bits >> 16
    return high + (low > 0x8000 or (low == 0x8000 and high & 1 == 1))


def to_bits_up(value: np.float32, dtype: str) -> int:
    """The least number that is not below ``value``."""
    bits = to_bits(value, dtype)
    return bits + 1 if from_bits(bits, dtype) < value else bits


def e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if code & 128 else size


def to_e4m3(value: np.float32) -> int:
    sign = 128 if np.signbit(value) else 0
    size = abs(float(value))
    return sign | min(range(127), key=lambda code: (abs(e4m3(code) - size), code & 1))


class SlowCodec:
    """Codes full blocks of one layout."""

    def __init__(self, name: str, layout: KVLayout) -> None:
        self.name, self.layout = name, layout
        self.h, self.t, self.d = layout.num_kv_heads, layout.block_tokens, layout.head_dim
        self.dtype, self.size = layout.dtype, SIZE[layout.dtype]
        self.scale_dtype = "float16" if layout.dtype == "float16" else "bfloat16"
        self.bits = {"int8": 8, "fp8": 8, "int4": 4, "int2": 2}[name]
        if self.bits < 8:
            limit = {"int4": 64, "int2": 32}[name]
            self.group = next(g for g in range(limit, 0, -1) if self.d % g == 0 and g % 4 == 0)

    def encode(self, raw: bytes) -> bytes:
        step = 2 * self.h * self.t * self.d * self.size
        return b"".join(self._encode_record(self._read(raw[i : i + step])) for i in range(0, len(raw), step))

    def _read(self, raw: bytes) -> list[np.float32]:
        words = (int.from_bytes(raw[i : i + self.size], "little") for i in range(0, len(raw), self.size))
        return [from_bits(word, self.dtype) for word in words]

    def _encode_record(self, x: list[np.float32]) -> bytes:
        data = self._encode_tokens(x) if self.bits == 8 else self._encode_groups(x)
        return data + bytes(-len(data) % 16)

    def _encode_tokens(self, x: list[np.float32]) -> bytes:
        scales, codes = b"", b""
        for row in (x[i : i + self.d] for i in range(0, len(x), self.d)):
            peak_code = F(127 if self.name == "int8" else 448)
            peak = min(max(abs(value) for value in row), LARGEST)
            is_sick = not all(np.isfinite(row))
            scale = F(0) if is_sick or peak < TINY else F(peak / peak_code)
            inverse = F(1) / scale if scale else F(0)
            scales += (NAN_BITS["float32"] if is_sick else to_bits(scale, "float32")).to_bytes(4, "little")
            for value in row:
                scaled = F(0) if is_sick else np.clip(F(value * inverse), -peak_code, peak_code)
                codes += bytes([round(float(scaled)) & 255 if self.name == "int8" else to_e4m3(scaled)])
        return scales + codes

    def _encode_groups(self, x: list[np.float32]) -> bytes:
        codes = [0] * len(x)
        half = len(x) // 2
        keys = [[(h * self.t + t) * self.d + d for t in range(self.t)] for h in range(self.h) for d in range(self.d)]
        values = [list(range(i, i + self.group)) for i in range(half, 2 * half, self.group)]
        zeros, scales = b"", b""
        for group in (*keys, *values):
            zero, scale, group_codes = self._encode_group([x[i] for i in group])
            zeros += zero.to_bytes(self.size, "little")
            scales += scale.to_bytes(2, "little")
            for i, code in zip(group, group_codes, strict=True):
                codes[i] = code
        rows = (codes[i : i + self.d] for i in range(0, len(codes), self.d))
        return zeros + scales + b"".join(self._pack(row) for row in rows)

    def _encode_group(self, x: list[np.float32]) -> tuple[int, int, list[int]]:
        if not all(np.isfinite(x)):
            return 0, NAN_BITS[self.scale_dtype], [0] * len(x)
        levels = F(2**self.bits - 1)
        zero, top = (np.clip(value, -LARGEST, LARGEST) for value in (min(x), max(x)))
        zero = zero + F(0)
        step = F(0) if top - zero < TINY else F((top - zero) / levels)
        scale_bits = to_bits_up(step, self.scale_dtype)
        scale = from_bits(scale_bits, self.scale_dtype)
        inverse = F(1) / scale if scale else F(0)
        codes = [round(float(np.clip(F(F(value - zero) * inverse), F(0), levels))) for value in x]
        return to_bits(zero, self.dtype), scale_bits, codes

    def _pack(self, row: list[int]) -> bytes:
        parts = 8 // self.bits
        stride = self.d // parts
        return bytes(sum(row[j + i * stride] << self.bits * i for i in range(parts)) for j in range(stride))

    def decode(self, encoded: bytes) -> bytes:
        size = self._record_bytes()
        records = (encoded[i : i + size] for i in range(0, len(encoded), size))
        return b"".join(
            to_bits(value, self.dtype).to_bytes(self.size, "little")
            for record in records
            for value in self._decode_record(record)
        )

    def _record_bytes(self) -> int:
        return len(self._encode_record([F(0)] * (2 * self.h * self.t * self.d)))

    def _decode_record(self, data: bytes) -> Iterable[np.float32]:
        rows = 2 * self.h * self.t
        if self.bits == 8:
            scales = np.frombuffer(data, "<f4", rows)
            for i, code in enumerate(data[4 * rows : 4 * rows + rows * self.d]):
                value = (code ^ 128) - 128 if self.name == "int8" else e4m3(code)
                yield F(F(value) * scales[i // self.d])
            return
        num_keys, groups = self.h * self.d, self.d // self.group
        num_groups = num_keys + rows // 2 * groups
        words = [int.from_bytes(data[i : i + self.size], "little") for i in range(0, num_groups * self.size, self.size)]
        zeros = [from_bits(word, self.dtype) for word in words]
        rest = data[num_groups * self.size :]
        scales_of = [
            from_bits(int.from_bytes(rest[2 * i : 2 * i + 2], "little"), self.scale_dtype) for i in range(num_groups)
        ]
        packed = rest[2 * num_groups :]
        stride = self.d * self.bits // 8
        largest = F(65504) if self.dtype == "float16" else LARGEST * F(1.5)
        for row in range(rows):
            for d in range(self.d):
                code = packed[row * stride + d % stride] >> self.bits * (d // stride) & (2**self.bits - 1)
                head = row // self.t
                is_key = row < rows // 2
                group = head * self.d + d if is_key else num_keys + (row - rows // 2) * groups + d // self.group
                yield np.clip(F(F(code) * scales_of[group]) + zeros[group], -largest, largest)
