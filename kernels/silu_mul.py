"""SwiGLU's gate (Shazeer 2020) on a GPU: ``silu(gate) * up`` in one pass. Knows no weight and no layer.

Shape letters: T tokens, I inner width.
"""

import torch
import torch.nn.functional as F

from twinpool.kernels.paged_kv import ALIGNMENT, DTYPES

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: CPUs never need it
    triton = None

CHUNK = 1024


def silu_mul(gate_up_TE: torch.Tensor, out_TI: torch.Tensor) -> None:
    """Write ``silu(gate) * up`` of rows that hold I gates and then I factors, on the current stream.

    Args:
        gate_up_TE: ``[T, 2 * I]``, fp16, bf16 or fp32, contiguous; I is a multiple of 16.
        out_TI: gate_up's dtype and device, contiguous. Overwritten.

    Raises:
        ValueError: a shape, dtype, device or layout above does not hold. Nothing was launched.
    """
    if gate_up_TE.dim() != 2 or out_TI.dim() != 2 or gate_up_TE.shape != (len(out_TI), 2 * out_TI.shape[1]):
        raise ValueError(f"gate_up {tuple(gate_up_TE.shape)} and out {tuple(out_TI.shape)}: [T, 2I] and [T, I]")
    if gate_up_TE.dtype not in DTYPES or out_TI.dtype != gate_up_TE.dtype or out_TI.device != gate_up_TE.device:
        raise ValueError(f"gate_up {gate_up_TE.dtype} and out {out_TI.dtype} must be one of {DTYPES}, on one device")
    num_tokens, inner = out_TI.shape
    if inner % ALIGNMENT:
        raise ValueError(f"inner width {inner} is no multiple of {ALIGNMENT}")
    for name, tensor in (("gate_up", gate_up_TE), ("out", out_TI)):
        if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"{name} must be contiguous, its address a multiple of {ALIGNMENT}")
    chunks = -(-inner // CHUNK)
    if num_tokens * chunks:
        _silu_mul_kernel[(num_tokens, chunks)](gate_up_TE, out_TI, inner, BLOCK=CHUNK)


def silu_mul_reference(gate_up_TE: torch.Tensor) -> torch.Tensor:
    """What the kernel means; the gate is rounded to the dtype before the product."""
    gate_TI, up_TI = gate_up_TE.chunk(2, dim=1)
    return F.silu(gate_TI) * up_TI


if triton is not None:

    @triton.jit
    def _silu_mul_kernel(  # type: ignore[no-untyped-def]
        gate_up_ptr,  # [T, 2 * I]
        out_ptr,  # [T, I], out
        inner,  # I
        BLOCK: tl.constexpr,
    ):
        """Grid (T, ceil(I / BLOCK)): program (t, c) does chunk c of row t."""
        token = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < inner
        gate = tl.load(gate_up_ptr + token * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + token * 2 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
        gated = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)
        tl.store(out_ptr + token * inner + at, (gated * up).to(out_ptr.dtype.element_ty), mask=inside)
