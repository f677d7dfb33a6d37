"""Adds a layer's output to the residual stream and norms the sum, in one pass over memory, on a GPU.

Knows no layer. Shape letters: T tokens, C width.
"""

import torch

from twinpool.kernels.paged_kv import ALIGNMENT, DTYPES, power_of_two

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: CPUs never need it
    triton = None

LEAST_WIDTH, MOST_WIDTH = 512, 16384  # of the variants; a row stays in one program's registers
UNSPECIALISED = ("eps",)


def add_rms_norm(
    residual_TC: torch.Tensor, added_TC: torch.Tensor | None, weight_C: torch.Tensor, eps: float, out_TC: torch.Tensor
) -> None:
    """``residual += added`` in place, and ``out = weight * rms_norm(residual)``, on the current stream.

    The sum is rounded to the dtype before it is normed, and the norm before the weight, as Hugging Face's Llama does.

    Args:
        residual_TC: fp16, bf16 or fp32, contiguous; C is a multiple of 16, and at most 16384.
        added_TC: like residual; None: nothing is added, and residual stays as it is.
        weight_C: residual's dtype and device.
        out_TC: like residual. Overwritten; may be ``added_TC``.

    Raises:
        ValueError: a shape, dtype, device or layout above does not hold. Nothing was launched.
    """
    _check(residual_TC, added_TC, weight_C, out_TC)
    num_tokens, width = residual_TC.shape
    if not num_tokens:
        return
    _add_rms_norm_kernel[(num_tokens,)](
        residual_TC,
        residual_TC if added_TC is None else added_TC,
        weight_C,
        out_TC,
        width,
        eps,
        ADD=added_TC is not None,
        BLOCK=max(power_of_two(width), LEAST_WIDTH),
        num_warps=norm_warps(max(power_of_two(width), LEAST_WIDTH)),
    )


def norm_warps(block: int) -> int:
    """Warps for a row: about 16 numbers a thread."""
    return min(max(block // 512, 1), 16)


def add_rms_norm_reference(
    residual_TC: torch.Tensor, added_TC: torch.Tensor | None, weight_C: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel means: the residual and the normed rows, as new tensors."""
    total_TC = residual_TC.clone() if added_TC is None else residual_TC + added_TC
    wide_TC = total_TC.float() if total_TC.dtype != torch.float64 else total_TC
    scale_T1 = torch.rsqrt(wide_TC.square().mean(-1, keepdim=True) + eps)
    return total_TC, weight_C * (wide_TC * scale_T1).to(total_TC.dtype)


def _check(
    residual_TC: torch.Tensor, added_TC: torch.Tensor | None, weight_C: torch.Tensor, out_TC: torch.Tensor
) -> None:
    if residual_TC.dim() != 2 or residual_TC.dtype not in DTYPES:
        raise ValueError(f"residual {tuple(residual_TC.shape)} {residual_TC.dtype} must be [T, C] of {DTYPES}")
    width = residual_TC.shape[1]
    if not 1 <= width <= MOST_WIDTH or width % ALIGNMENT:
        raise ValueError(f"width {width}: a multiple of {ALIGNMENT} up to {MOST_WIDTH} is wanted")
    likes = {"added": added_TC, "out": out_TC}
    for name, tensor in likes.items():
        if tensor is not None and tensor.shape != residual_TC.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, but residual {tuple(residual_TC.shape)}")
    if weight_C.shape != (width,):
        raise ValueError(f"weight is {tuple(weight_C.shape)}: ({width},) is wanted")
    for name, tensor in {**likes, "weight": weight_C, "residual": residual_TC}.items():
        if tensor is None:
            continue
        if tensor.dtype != residual_TC.dtype or tensor.device != residual_TC.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}: residual's are wanted")
        if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"{name} must be contiguous, its address a multiple of {ALIGNMENT}")


if triton is not None:

    @triton.jit(do_not_specialize=UNSPECIALISED)
    def _add_rms_norm_kernel(  # type: ignore[no-untyped-def]
        residual_ptr,  # [T, C], in and out
        added_ptr,  # [T, C]
        weight_ptr,  # [C]
        out_ptr,  # [T, C], out
        width,  # C
        eps,
        ADD: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Grid (T,): program t does row t, in float32."""
        at = tl.arange(0, BLOCK)
        inside = at < width
        row = tl.program_id(0).to(tl.int64) * width
        x = tl.load(residual_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            x += tl.load(added_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
            rounded = x.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + row + at, rounded, mask=inside)
            x = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
        normed = (x * scale).to(out_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + row + at, (normed * weight).to(out_ptr.dtype.element_ty), mask=inside)
