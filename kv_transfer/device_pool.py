"""A KV pool that lies on a GPU, as links see it, and which caches have one.

Knows no link. A cache whose ``device_pool`` is one keeps its KV there; any other keeps it in host memory.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinpool.model.kv_layout import KVCache

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class DevicePool:
    """A pool on a device.

    What links are given to send is complete on the device, and what they report as received is, too: whoever writes
    or reads blocks on a stream of its own has waited for its event before it says so.
    """

    tensor: "torch.Tensor"  # uint8 [num_blocks, num_layers, block_layer_bytes], contiguous
    index: int  # of the device, as torch counts


def device_pool_of(cache: KVCache) -> DevicePool | None:
    """The cache's pool, if that is on a device."""
    pool = getattr(cache, "device_pool", None)
    return pool if isinstance(pool, DevicePool) else None
