"""The digest of a chunk that lies on a device, for links whose pools do; both ends of such a link use it.

Knows no link. Another digest than a chunk's in host memory (header.py), so the two never meet on one link.
"""

import torch

from twinpool.kernels.byte_digest import byte_digest


def digest_tensor(data: torch.Tensor) -> int:
    """64 bits of the bytes and their order, taken where they lie, on the current stream; waits for them.

    Args:
        data: uint8, one dimension, contiguous.

    Raises:
        ValueError: it is not.
    """
    return byte_digest(data)
