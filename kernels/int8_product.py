"""Products of few rows with a weight of one byte per number, on a CPU's 8-bit dot products. Knows no layer.

A step of few rows waits for the weights to arrive from memory, so half the bytes are half the time. Only the weight is
rounded to 8 bits (one scale per output, symmetric). A row of inputs goes in as two rows of bytes, its leading byte and
what that leaves, so that inputs keep about 15 bits and outliers in them do no harm; two rows cost what one does.

Shape letters: T rows, C inputs, O outputs.
"""

import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MAX_ROWS = 8  # with more, the product with the weight as it is wins (docs/performance.md)
_STEPS = 254.0  # the second byte counts in steps of the first's, divided by this
_ZERO = 128  # bytes are unsigned: this one means 0
_LEAST_ROWS = 4  # oneDNN computes fewer slower than 4


class Int8Product:
    """A weight rounded to 8 bits, packed for oneDNN."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor | None) -> None:
        # Chunks, as a float32 copy of a whole head would be far larger than the weight.
        chunks = [_round_weight(part) for part in torch.split(weight_OC, 4096)]
        self._scale_O = torch.cat([scale for _, scale in chunks])
        packed = torch.cat([rounded for rounded, _ in chunks])
        self.num_bytes = packed.nbytes + self._scale_O.nbytes
        self._packed = torch.ops.onednn.qlinear_prepack(packed, None)
        self._zero_O = torch.zeros(len(weight_OC), dtype=torch.int32)
        self._bias_O = bias_O
        self._dtype = weight_OC.dtype

    def __call__(self, x_TC: Tensor) -> Tensor:
        """``[T, O]`` in the weight's dtype; T is at least 1 and at most MAX_ROWS. Not-finite rows stay not finite."""
        num_rows = len(x_TC)
        wide_TC = x_TC.float()
        step_T1 = wide_TC.abs().amax(1, keepdim=True).clamp_min_(1e-30).div_(127)
        scaled_TC = wide_TC / step_T1
        bytes_RC = torch.zeros((max(2 * num_rows, _LEAST_ROWS), x_TC.shape[1]))
        leading_TC = torch.round(scaled_TC, out=bytes_RC[:num_rows])
        torch.round(scaled_TC.sub_(leading_TC).mul_(_STEPS), out=bytes_RC[num_rows : 2 * num_rows])
        out_RO = torch.ops.onednn.qlinear_pointwise(
            bytes_RC.add_(_ZERO).to(torch.uint8),
            1.0,
            _ZERO,
            self._packed,
            self._scale_O,
            self._zero_O,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        out_TO: Tensor = out_RO[:num_rows].add_(out_RO[num_rows : 2 * num_rows], alpha=1 / _STEPS).mul_(step_T1)
        if self._bias_O is not None:
            out_TO += self._bias_O
        return out_TO.to(self._dtype)


def _round_weight(weight_OC: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bytes, and each output's scale."""
    wide_OC = weight_OC.float()
    scale_O = wide_OC.abs().amax(1).clamp_min_(1e-30).div_(127)
    return (wide_OC / scale_O[:, None]).round_().to(torch.int8), scale_O


@cache
def has_int8_product() -> bool:
    """Whether this torch and this CPU have oneDNN's 8-bit product, and do not saturate in it; tried once."""
    weight_OC, x_TC = torch.ones(24, 64), torch.ones(3, 64)
    try:
        right = bool(torch.equal(Int8Product(weight_OC, None)(x_TC).round(), torch.full((3, 24), 64.0)))
    except (AttributeError, RuntimeError) as error:
        log.warning("no 8-bit matrix products, weights stay as they are: %s", str(error).partition("\n")[0])
        return False
    if not right:
        log.warning("8-bit matrix products are wrong here, weights stay as they are")
    return right
