"""Copies and digests the bytes of blocks in pools that lie in host memory, without staging where that is faster.

Knows no link: pools are arrays, and whose they are is the caller's business.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import BlockIds

Pool = NDArray[np.uint8]  # [num_blocks, num_layers, block_layer_bytes]

# Below it, a few microseconds of Python per block cost more than a second copy does (measured: equal at 8 KiB).
_MIN_RUN_BYTES = 8 << 10
_STAGING_BYTES = 1 << 20  # stays in cache
_PIECE_BYTES = 256 << 10  # copied, and then digested while it is in the cache nearest to the core


def check_ids(pool: Pool, block_ids: BlockIds) -> None:
    """Raise ValueError unless every id is one of the pool's; numpy would take -1 for the last block."""
    if len(block_ids) and not (block_ids.min() >= 0 and block_ids.max() < len(pool)):
        raise ValueError(f"block ids from {block_ids.min()} to {block_ids.max()}: the pool has {len(pool)} blocks")


def digest_blocks(pool: Pool, block_ids: BlockIds, first_layer: int, end_layer: int) -> bytes:
    """What ``data_digest`` says of the bytes that ``gather`` would write.

    Raises:
        ValueError: an id is not of the pool.
    """
    check_ids(pool, block_ids)
    layers, hasher = pool[:, first_layer:end_layer], xxhash.xxh3_128()
    if _run_bytes(layers) >= _MIN_RUN_BYTES:
        for block in block_ids.tolist():
            hasher.update(_flat(layers[block]))
    else:
        for some in _batches(layers, len(block_ids)):
            hasher.update(_flat(layers[block_ids[some]]))
    return hasher.digest()


def copy_blocks(
    source: Pool, source_ids: BlockIds, target: Pool, target_ids: BlockIds, layers: tuple[int, int], *, digest: bool
) -> bytes:
    """Copy layers ``[first, end)`` of blocks of one pool into as many of another; returns the digest, if asked for.

    The digest is of what was written, or of memory that nobody else sees: ``source`` may change under the copy.

    Raises:
        ValueError: an id is not of its pool, or the numbers of ids differ. Nothing was copied.
    """
    check_ids(source, source_ids)
    check_ids(target, target_ids)
    if len(source_ids) != len(target_ids):
        raise ValueError(f"{len(source_ids)} blocks for {len(target_ids)}")
    theirs, ours, hasher = source[:, slice(*layers)], target[:, slice(*layers)], xxhash.xxh3_128()
    if _run_bytes(ours) >= _MIN_RUN_BYTES:
        for from_block, to_block in zip(source_ids.tolist(), target_ids.tolist(), strict=True):
            if digest:
                _copy_digested(theirs[from_block].reshape(-1), ours[to_block].reshape(-1), hasher)
            else:
                ours[to_block] = theirs[from_block]
    else:
        for some in _batches(ours, len(target_ids)):
            staged = theirs[source_ids[some]]
            if digest:
                hasher.update(_flat(staged))
            ours[target_ids[some]] = staged
    return hasher.digest() if digest else b""


def _copy_digested(source: Bytes, target: Bytes, hasher: xxhash.xxh3_128) -> None:
    """Copy one contiguous run, and digest what was written."""
    for first in range(0, len(target), _PIECE_BYTES):
        piece = target[first : first + _PIECE_BYTES]
        piece[:] = source[first : first + _PIECE_BYTES]
        hasher.update(piece.data)


def _run_bytes(layers: Pool) -> int:
    """Contiguous bytes of one block."""
    return int(layers.shape[1] * layers.shape[2])


def _flat(blocks: Pool) -> memoryview:
    return blocks.reshape(-1).data


def _batches(layers: Pool, num_blocks: int) -> list[slice]:
    step = max(1, _STAGING_BYTES // _run_bytes(layers))
    return [slice(first, first + step) for first in range(0, num_blocks, step)]
