"""SwiGLU's gate (Shazeer 2020) on a CPU: ``silu(gate) * up``. Knows no weight and no layer."""

import torch
import torch.nn.functional as F

_SERIAL_NUMEL = 32_768  # torch splits larger tensors among threads at any element (at::internal::GRAIN_SIZE)


def swiglu(gate_up_TE: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
    """Return ``[T, I]`` of ``[T, 2 * I]``, whose rows hold I gates and then I factors.

    torch computes exponentials in vectors, and the rest of a thread's share one by one, with other last bits. So the
    bits of a row depend on where shares end; ``deterministic`` gives torch so few rows at once that it never shares
    out more than one row.
    """
    inner = gate_up_TE.shape[1] // 2
    gate_TI, up_TI = gate_up_TE[:, :inner], gate_up_TE[:, inner:]
    rows = max(1, (_SERIAL_NUMEL - 1) // inner)
    if not deterministic or len(gate_TI) <= rows:
        return F.silu(gate_TI).mul_(up_TI)
    return torch.cat([F.silu(part) for part in torch.split(gate_TI, rows)]).mul_(up_TI)
