"""How KV lies in a worker's memory, and how anything else may touch that memory.

Knows sizes only: no tensor, no peer, no policy.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import xxhash

PROTOCOL_VERSION = 3
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, order=True)
class HeadRange:
    """KV heads ``[first, end)``, as the pool of one rank counts them."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class KVLayout:
    """One rank's KV pool: ``[num_blocks, num_layers, 2 (K, V), num_kv_heads, block_tokens, head_dim]``, contiguous."""

    num_layers: int
    num_kv_heads: int
    block_tokens: int
    head_dim: int
    dtype: str  # float32, bfloat16 or float16
    model: str  # what computed it: KV of different weights must never meet
    codec: str = "raw"

    @property
    def block_layer_bytes(self) -> int:
        """Bytes of one (block, layer): a contiguous run in the pool."""
        return 2 * self.num_kv_heads * self.block_tokens * self.head_dim * ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return self.num_layers * self.block_layer_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's KV over all layers."""
        return self.block_bytes // self.block_tokens

    def of_heads(self, heads: HeadRange | None) -> "KVLayout":
        """How the bytes of these heads lie once they are gathered: like a pool that has no other heads.

        Raises:
            ValueError: this layout has not all of them, or there are none.
        """
        if heads is None or (heads.first, heads.end) == (0, self.num_kv_heads):
            return self
        if not 0 <= heads.first < heads.end <= self.num_kv_heads:
            raise ValueError(f"KV heads [{heads.first}, {heads.end}) are not in [0, {self.num_kv_heads})")
        return replace(self, num_kv_heads=heads.end - heads.first)

    def describe(self) -> str:
        """All that two workers must agree on before KV moves between them, in words."""
        return (
            f"protocol {PROTOCOL_VERSION}, model {self.model}, "
            f"{self.num_layers} layers x {self.num_kv_heads} KV heads x {self.head_dim}, "
            f"blocks of {self.block_tokens} tokens, {self.dtype}, codec {self.codec}"
        )

    def digest(self) -> str:
        """A short hash of ``describe()``. Of a whole model's layout it is equal on all workers of that model, whatever
        their shapes (see kv_transfer/rank_shape.py)."""
        return xxhash.xxh3_128_hexdigest(self.describe().encode())

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens; the last may be partial."""
        return -(-num_tokens // self.block_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class SharedKV:
    """A KV pool in this host's memory, as one who copies out of it, or into it, without ``gather`` and ``scatter``."""

    blocks: np.ndarray  # uint8 [num_blocks, num_layers, block_layer_bytes]; written for blocks that are lent only
    fd: int  # of the sealed memory that holds the pool and nothing else (see model/host_pool.py); the cache's own


class KVCache(Protocol):
    """A worker's KV memory, as a link sees it. Called from link threads, for blocks that the pool keeps referenced."""

    layout: KVLayout
    num_blocks: int
    shared: SharedKV | None  # None: other processes cannot be shown the pool

    def gather(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        out: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """Copy layers ``[first_layer, end_layer)`` of the named blocks into ``out``, block by block.

        ``out`` is uint8, contiguous, of exactly that size. The order of bytes is
        ``[block, layer, 2, kv_heads, block_tokens, head_dim]``, of ``heads`` only; None: of all that the pool has.
        """
        ...

    def scatter(
        self,
        first_layer: int,
        end_layer: int,
        block_ids: np.ndarray,
        data: np.ndarray,
        heads: HeadRange | None = None,
    ) -> None:
        """The inverse of ``gather``."""
        ...
