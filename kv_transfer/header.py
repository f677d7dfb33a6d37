"""The fixed-size header in front of every chunk on a link: says what the bytes behind it claim to be.

It is compared with what the control channel announced, and never used for a size. Knows no link and no memory.
"""

from dataclasses import dataclass

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]  # contiguous, one dimension

MAGIC = b"TPKV"
VERSION = 1
HEADER_BYTES = 128
DIGEST_BYTES = 16
_NUM_FIELDS = 7
_MAX_NUMBER = 2**63 - 1


class HeaderError(Exception):
    """The bytes are no header of this version, or not the one that was announced."""


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What a chunk is."""

    handoff: bytes  # handoff_id of the request
    epoch: int
    chunk: int  # counted from 0 over the life of one link
    num_bytes: int  # behind the header, as coded
    digest: bytes  # of these bytes; empty: none was taken

    def differs_from(self, announced: "ChunkHeader") -> str:
        """Name the first field, beside the digest, that is not as announced; empty when there is none."""
        for name in ("handoff", "epoch", "chunk", "num_bytes"):
            ours, theirs = getattr(announced, name), getattr(self, name)
            if ours != theirs:
                ours, theirs = (value.hex() if isinstance(value, bytes) else value for value in (ours, theirs))
                return f"{name} {theirs} came where {ours} was announced"
        return ""


def handoff_id(request_id: str) -> bytes:
    """Stand for a request's id, however long, in 16 bytes (xxh3_128)."""
    return xxhash.xxh3_128_digest(request_id.encode())


def data_digest(data: Bytes) -> bytes:
    """Digest a chunk's bytes (xxh3_128). It finds damage, not malice."""
    return xxhash.xxh3_128_digest(data.data)


def pack_header(header: ChunkHeader, out: Bytes) -> None:
    """Write the header, zero padded, over the ``HEADER_BYTES`` bytes of ``out``."""
    packed: bytes = msgpack.packb(
        (MAGIC, VERSION, header.handoff, header.epoch, header.chunk, header.num_bytes, header.digest)
    )
    out[:] = 0
    out[: len(packed)] = np.frombuffer(packed, dtype=np.uint8)


def parse_header(data: bytes) -> ChunkHeader:
    """Read a header from exactly ``HEADER_BYTES`` bytes that anybody may have written.

    Raises:
        HeaderError: they are not what ``pack_header`` writes. No other error comes of any bytes.
    """
    if len(data) != HEADER_BYTES:
        raise HeaderError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
    unpacker = msgpack.Unpacker(
        use_list=False,
        max_buffer_size=HEADER_BYTES,
        max_array_len=_NUM_FIELDS,
        max_bin_len=DIGEST_BYTES,
        max_str_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    try:
        unpacker.feed(data)
        fields = unpacker.unpack()
    except (msgpack.UnpackException, ValueError) as error:
        raise HeaderError(f"not a header: {type(error).__name__}") from None
    header = _check_fields(fields)
    canonical = np.empty(HEADER_BYTES, dtype=np.uint8)
    pack_header(header, canonical)
    if canonical.tobytes() != data:
        raise HeaderError("a header is spelled in one way only, and zero padded")
    return header


def is_intact(header: Bytes, data: Bytes, announced: ChunkHeader, *, needs_digest: bool) -> bool:
    """Whether the bytes that arrived are the ones that were sent.

    Raises:
        HeaderError: it is not the chunk that was announced: the ends disagree about the order, and the link is lost.
    """
    digest = sent_digest(header, announced)
    return not needs_digest or digest == data_digest(data)


def sent_digest(header: Bytes, announced: ChunkHeader) -> bytes:
    """The digest that a header claims for its bytes.

    Raises:
        HeaderError: as ``is_intact``.
    """
    arrived = parse_header(header.tobytes())
    difference = arrived.differs_from(announced)
    if difference:
        raise HeaderError(difference)
    return arrived.digest


def _check_fields(fields: object) -> ChunkHeader:
    if not isinstance(fields, tuple) or len(fields) != _NUM_FIELDS:
        raise HeaderError("not the fields of a header")
    magic, version, handoff, epoch, chunk, num_bytes, digest = fields
    if magic != MAGIC or type(version) is not int or version != VERSION:
        raise HeaderError(f"not a header of version {VERSION}")
    if not isinstance(handoff, bytes) or len(handoff) != DIGEST_BYTES:
        raise HeaderError("the handoff is not 16 bytes")
    if not isinstance(digest, bytes) or len(digest) not in (0, DIGEST_BYTES):
        raise HeaderError("the digest is neither 16 bytes nor none")
    if not all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in (epoch, chunk, num_bytes)):
        raise HeaderError("a number is out of range")
    return ChunkHeader(handoff, epoch, chunk, num_bytes, digest)
