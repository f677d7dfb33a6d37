"""Norms and rotates a step's queries and keys, and writes its keys and values into the paged pool, in one pass.

Knows one layer of the pool and where each token's slot is; knows no sequence. Shape letters: T tokens, H query heads, K
key/value heads, E = H + 2 * K, D head size, B tokens in a block, P positions of the rotary tables.
"""

import torch

from twinpool.kernels.paged_kv import ALIGNMENT, check_layer, power_of_two, row_stride

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: CPUs never need it
    triton = None

UNSPECIALISED = ("num_heads", "num_kv_heads", "block_shift", "eps")


def rope_kv_write(
    qkv_TED: torch.Tensor,
    cos_PD: torch.Tensor,
    signed_sin_PD: torch.Tensor,
    position_T: torch.Tensor,
    slot_T: torch.Tensor,
    kv_N2KBD: torch.Tensor,
    qk_norm_AD: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate the queries in place, and put rotated keys and plain values into their slots, on the current stream.

    Args:
        qkv_TED: fp16, bf16 or fp32: a token's H queries, K keys and K values; strides (any multiple of 16, D, 1). Its
            keys and values are left as they are.
        cos_PD: qkv's dtype and device, contiguous.
        signed_sin_PD: like cos; the first half of a row is negated: ``x * cos + swap_halves(x) * signed_sin``.
        position_T: int64 row of the tables for each token. Not checked on the device.
        slot_T: int64 ``block id * B + place in the block``; negative: the token is padding, and nothing of it is
            computed or written. Not checked on the device. No two tokens share a slot.
        kv_N2KBD: one layer of the pool, ``pool[:, layer]``.
        qk_norm_AD: ``[H + K, D]``: weights of the norm that queries and keys get first; None: they get none.

    Raises:
        ValueError: a shape, stride, dtype or device above does not hold. Nothing was launched.
    """
    queries_THD = qkv_TED[:, : _num_heads(qkv_TED, kv_N2KBD)]
    check_layer(queries_THD, kv_N2KBD, queries_THD)
    _check(qkv_TED, cos_PD, signed_sin_PD, position_T, slot_T, qk_norm_AD, kv_N2KBD.shape[2])
    num_tokens, num_rows, head_dim = qkv_TED.shape
    _, _, num_kv_heads, block_tokens, _ = kv_N2KBD.shape
    if not num_tokens:
        return
    _rope_kv_write_kernel[(num_tokens, num_rows)](
        qkv_TED,
        cos_PD,
        signed_sin_PD,
        position_T,
        slot_T,
        cos_PD if qk_norm_AD is None else qk_norm_AD,
        kv_N2KBD,
        row_stride(qkv_TED),
        kv_N2KBD.stride(0),
        num_kv_heads * block_tokens * head_dim,
        block_tokens * head_dim,
        num_rows - 2 * num_kv_heads,
        num_kv_heads,
        block_tokens.bit_length() - 1,
        eps,
        HEAD_DIM=head_dim,
        HALF=power_of_two(head_dim // 2),
        NORM=qk_norm_AD is not None,
        num_warps=1,
    )


def rope_kv_write_reference(
    qkv_TED: torch.Tensor,
    cos_PD: torch.Tensor,
    signed_sin_PD: torch.Tensor,
    position_T: torch.Tensor,
    slot_T: torch.Tensor,
    kv_N2KBD: torch.Tensor,
    qk_norm_AD: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """What the kernel means; arguments as there."""
    _, _, num_kv_heads, block_tokens, head_dim = kv_N2KBD.shape
    used_T = slot_T >= 0
    turned_TAD = qkv_TED[used_T, : qkv_TED.shape[1] - num_kv_heads]
    if qk_norm_AD is not None:
        wide = turned_TAD.to(torch.promote_types(qkv_TED.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        turned_TAD = qk_norm_AD * (wide * scale).to(qkv_TED.dtype)
    cos_T1D, signed_sin_T1D = (table[position_T[used_T]][:, None] for table in (cos_PD, signed_sin_PD))
    turned_TAD = turned_TAD * cos_T1D + turned_TAD.roll(head_dim // 2, -1) * signed_sin_T1D
    num_heads = qkv_TED.shape[1] - 2 * num_kv_heads
    qkv_TED[used_T, :num_heads] = turned_TAD[:, :num_heads]
    block_T, place_T = slot_T[used_T] // block_tokens, slot_T[used_T] % block_tokens
    kv_N2KBD[block_T, 0, :, place_T] = turned_TAD[:, num_heads:]
    kv_N2KBD[block_T, 1, :, place_T] = qkv_TED[used_T, num_heads + num_kv_heads :]


def _num_heads(qkv_TED: torch.Tensor, kv_N2KBD: torch.Tensor) -> int:
    if qkv_TED.dim() != 3 or kv_N2KBD.dim() != 5 or qkv_TED.shape[1] <= 2 * kv_N2KBD.shape[2]:
        raise ValueError(
            f"qkv {tuple(qkv_TED.shape)} and kv {tuple(kv_N2KBD.shape)}: [T, H + 2K, D] and [N, 2, K, B, D]"
        )
    return qkv_TED.shape[1] - 2 * kv_N2KBD.shape[2]


def _check(
    qkv_TED: torch.Tensor,
    cos_PD: torch.Tensor,
    signed_sin_PD: torch.Tensor,
    position_T: torch.Tensor,
    slot_T: torch.Tensor,
    qk_norm_AD: torch.Tensor | None,
    num_kv_heads: int,
) -> None:
    num_tokens, num_rows, head_dim = qkv_TED.shape
    if cos_PD.dim() != 2 or cos_PD.shape[1] != head_dim or signed_sin_PD.shape != cos_PD.shape:
        raise ValueError(f"tables {tuple(cos_PD.shape)} and {tuple(signed_sin_PD.shape)} must both be [P, {head_dim}]")
    tables = {"cos": cos_PD, "signed_sin": signed_sin_PD}
    if qk_norm_AD is not None:
        if qk_norm_AD.shape != (num_rows - num_kv_heads, head_dim):
            raise ValueError(f"qk_norm {tuple(qk_norm_AD.shape)} must be {(num_rows - num_kv_heads, head_dim)}")
        tables["qk_norm"] = qk_norm_AD
    for name, table in tables.items():
        if table.dtype != qkv_TED.dtype or table.device != qkv_TED.device:
            raise ValueError(f"{name} is {table.dtype} on {table.device}: qkv's are wanted")
        if not table.is_contiguous() or table.data_ptr() % ALIGNMENT:
            raise ValueError(f"{name} must be contiguous, its address a multiple of {ALIGNMENT}")
    for name, numbers in (("position", position_T), ("slot", slot_T)):
        if numbers.shape != (num_tokens,) or numbers.dtype != torch.int64 or not numbers.is_contiguous():
            raise ValueError(f"{name} {tuple(numbers.shape)} {numbers.dtype} must be int64 [{num_tokens}], contiguous")
        if numbers.device != qkv_TED.device or numbers.data_ptr() % ALIGNMENT:
            raise ValueError(f"{name} must be on {qkv_TED.device}, its address a multiple of {ALIGNMENT}")


if triton is not None:

    @triton.jit(do_not_specialize=UNSPECIALISED)
    def _rope_kv_write_kernel(  # type: ignore[no-untyped-def]
        qkv_ptr,  # [T, E, D], in and out
        cos_ptr,  # [P, D]
        signed_sin_ptr,  # [P, D]
        position_ptr,  # int64 [T]
        slot_ptr,  # int64 [T]
        norm_ptr,  # [H + K, D]
        kv_ptr,  # [N, 2, K, B, D], out
        qkv_stride,
        block_stride,
        value_offset,
        head_stride,
        num_heads,  # H
        num_kv_heads,  # K
        block_shift,  # log2(B)
        eps,
        HEAD_DIM: tl.constexpr,
        HALF: tl.constexpr,
        NORM: tl.constexpr,
    ):
        """Grid (T, E): program (t, j) does token t's query, key or value j, in float32."""
        token = tl.program_id(0)
        row = tl.program_id(1)
        slot = tl.load(slot_ptr + token)
        if slot < 0:
            return
        dim = tl.arange(0, HALF)
        inside = dim < HEAD_DIM // 2
        source = qkv_ptr + token.to(tl.int64) * qkv_stride + row * HEAD_DIM + dim
        low = tl.load(source, mask=inside, other=0.0)
        high = tl.load(source + HEAD_DIM // 2, mask=inside, other=0.0)
        target = source
        if row >= num_heads:
            is_value = row >= num_heads + num_kv_heads
            head = row - num_heads - tl.where(is_value, num_kv_heads, 0)
            place = slot & ((1 << block_shift) - 1)
            start = (slot >> block_shift) * block_stride + tl.where(is_value, value_offset, 0)
            target = kv_ptr + start + head * head_stride + place * HEAD_DIM + dim
        if row < num_heads + num_kv_heads:
            x = low.to(tl.float32)
            y = high.to(tl.float32)
            if NORM:
                scale = tl.rsqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / HEAD_DIM + eps)
                weight = norm_ptr + row * HEAD_DIM + dim
                x = (x * scale).to(low.dtype).to(tl.float32) * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
                other = tl.load(weight + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
                y = (y * scale).to(low.dtype).to(tl.float32) * other
            angle = tl.load(position_ptr + token) * HEAD_DIM + dim
            cos_x = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)
            cos_y = tl.load(cos_ptr + angle + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
            sin_x = tl.load(signed_sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)
            sin_y = tl.load(signed_sin_ptr + angle + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
            low = (x * cos_x + y * sin_x).to(low.dtype)
            high = (y * cos_y + x * sin_y).to(high.dtype)
        tl.store(target, low, mask=inside)
        tl.store(target + HEAD_DIM // 2, high, mask=inside)
