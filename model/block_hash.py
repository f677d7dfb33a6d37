"""Names the content of KV blocks: a chain of hashes over a request's tokens and over all that its KV depends on.

Knows tokens and names only: neither where a block lies nor who holds it.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

TokenIds = Sequence[int] | NDArray[np.integer]

_ROOT_VERSION = b"twinpool block hash 1"
_MAX_TOKEN_ID = 2**31 - 1


def root_hash(*, tenant_salt: str, model: str, dtype: str, codec: str) -> bytes:
    """The hash before the first block (16 bytes): equal only if all four fields are.

    KV of another tenant, of other weights, or that arrived through a codec of another quality never shares a root, and
    so never a block. Fields are length-prefixed, so none can run into the next.
    """
    state = xxhash.xxh3_128(_ROOT_VERSION)
    for field in (tenant_salt, model, dtype, codec):
        data = field.encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()


def block_hashes(token_ids: TokenIds, block_tokens: int, root: bytes) -> list[bytes]:
    """One 16-byte hash for each full block of ``token_ids``: xxh3_128(previous hash, tokens as little-endian int32).

    A trailing partial block has none. xxh3 is fast, not cryptographic: keep tenants apart by the root's salt.

    Raises:
        ValueError: a token id is outside [0, 2**31).
    """
    hashes: list[bytes] = []
    extend_block_hashes(hashes, token_ids, block_tokens, root)
    return hashes


def extend_block_hashes(hashes: list[bytes], token_ids: TokenIds, block_tokens: int, root: bytes) -> None:
    """Append to ``hashes``, the hashes of a beginning of ``token_ids``, those of the full blocks that follow.

    For a sequence that grows: costs nothing until another block is full, then reads the tokens of that block only.

    Raises:
        ValueError: a new token id is outside [0, 2**31). ``hashes`` is unchanged.
    """
    first, end = len(hashes), len(token_ids) // block_tokens
    if first >= end:
        return
    data = _int32_bytes(token_ids[first * block_tokens : end * block_tokens])
    previous = hashes[-1] if hashes else root
    block_bytes = 4 * block_tokens
    for offset in range(0, len(data), block_bytes):
        previous = xxhash.xxh3_128_digest(previous + data[offset : offset + block_bytes])
        hashes.append(previous)


def short_names(hashes: Sequence[bytes]) -> list[int]:
    """The first 64 bits of each hash, for those who only guess where a block may be (see router/prefix_index.py)."""
    words: list[int] = np.frombuffer(b"".join(hashes), "<u8")[::2].tolist()
    return words


def _int32_bytes(token_ids: TokenIds) -> bytes:
    try:
        ids = np.asarray(token_ids, dtype=np.int64)
    except OverflowError as error:
        raise ValueError("a token id is outside [0, 2**31)") from error
    if ids.min() < 0 or ids.max() > _MAX_TOKEN_ID:
        raise ValueError("a token id is outside [0, 2**31)")
    return ids.astype("<i4").tobytes()
