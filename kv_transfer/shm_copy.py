"""Copies and digests the bytes of blocks in pools that lie in host memory, without staging where that is faster.

Knows no link: pools are arrays, and whose they are is the caller's business.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import BlockIds

Pool = NDArray[np.uint8]  # [num_blocks, num_layers, block_layer_bytes]
Part = NDArray[np.uint8]  # of every block of a pool: [num_blocks, num_layers, 2, bytes of the heads], see view_part

# Below it, a few microseconds of Python per block cost more than a second copy does (measured: equal at 8 KiB).
_MIN_BLOCK_BYTES = 8 << 10
_STAGING_BYTES = 256 << 10  # stays in cache; 1 MiB takes up to six times as long, as each is fresh memory then
_PIECE_BYTES = 256 << 10  # copied, and then digested while it is in the cache nearest to the core


def check_ids(pool: Pool | Part, block_ids: BlockIds) -> None:
    """Raise ValueError unless every id is one of the pool's; numpy would take -1 for the last block."""
    if len(block_ids) and not (block_ids.min() >= 0 and block_ids.max() < len(pool)):
        raise ValueError(f"block ids from {block_ids.min()} to {block_ids.max()}: the pool has {len(pool)} blocks")


def digest_blocks(part: Part, block_ids: BlockIds) -> bytes:
    """What ``data_digest`` says of the bytes that ``gather`` would write.

    Raises:
        ValueError: an id is not of the pool.
    """
    check_ids(part, block_ids)
    hasher = xxhash.xxh3_128()
    if part[0].nbytes >= _MIN_BLOCK_BYTES and _is_whole(part):
        for block in block_ids.tolist():
            hasher.update(part[block].reshape(-1).data)
    else:
        for some in _batches(part, len(block_ids)):
            hasher.update(part[block_ids[some]].reshape(-1).data)
    return hasher.digest()


def copy_blocks(source: Part, source_ids: BlockIds, target: Part, target_ids: BlockIds, *, digest: bool) -> bytes:
    """Copy parts of blocks of one pool into as many of another; returns the digest, if asked for.

    The digest is of what was written, or of memory that nobody else sees: ``source`` may change under the copy.

    Raises:
        ValueError: an id is not of its pool, or the numbers of ids or the shapes differ. Nothing was copied.
    """
    check_ids(source, source_ids)
    check_ids(target, target_ids)
    if len(source_ids) != len(target_ids) or source.shape[1:] != target.shape[1:]:
        raise ValueError(f"{len(source_ids)} blocks {source.shape[1:]} for {len(target_ids)} {target.shape[1:]}")
    hasher = xxhash.xxh3_128()
    is_large, is_whole = source[0].nbytes >= _MIN_BLOCK_BYTES, _is_whole(source) and _is_whole(target)
    if is_large and (is_whole or not digest):
        for from_block, to_block in zip(source_ids.tolist(), target_ids.tolist(), strict=True):
            if digest:
                _copy_digested(source[from_block].reshape(-1), target[to_block].reshape(-1), hasher)
            else:
                target[to_block] = source[from_block]
    else:
        for some in _batches(target, len(target_ids)):
            staged = source[source_ids[some]]
            if digest:
                hasher.update(staged.reshape(-1).data)
            target[target_ids[some]] = staged
    return hasher.digest() if digest else b""


def _copy_digested(source: Bytes, target: Bytes, hasher: xxhash.xxh3_128) -> None:
    """Copy one contiguous run, and digest what was written."""
    for first in range(0, len(target), _PIECE_BYTES):
        piece = target[first : first + _PIECE_BYTES]
        piece[:] = source[first : first + _PIECE_BYTES]
        hasher.update(piece.data)


def _is_whole(part: Part) -> bool:
    """Whether the part of each block is contiguous; with some heads only, it has gaps."""
    return bool(part[0].flags.c_contiguous)


def _batches(part: Part, num_blocks: int) -> list[slice]:
    step = max(1, _STAGING_BYTES // part[0].nbytes)
    return [slice(first, first + step) for first in range(0, num_blocks, step)]
