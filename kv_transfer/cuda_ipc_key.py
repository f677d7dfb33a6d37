"""What a worker tells another of its KV pool on a GPU, so that the other can open it: fixed fields in fixed size.

Knows no device. Anybody may have written the bytes that are read here.
"""

from dataclasses import dataclass

import msgpack

HANDLE_BYTES = 64  # of a CUDA IPC memory handle
POOL_ID_BYTES = 16
KEY_BYTES = 160
_MAGIC = b"TPIC"
_VERSION = 1
_NUM_FIELDS = 6
_MAX_NUMBER = 2**63 - 1


class KeyRefused(Exception):
    """The bytes are no key of this version."""


@dataclass(frozen=True, slots=True)
class IpcKey:
    """One pool."""

    pool_id: bytes  # random, so that a later pool is never taken for this one
    handle: bytes  # of the allocation that the pool lies in
    offset: int  # of the pool in it
    num_bytes: int  # of the pool


def pack_key(key: IpcKey) -> bytes:
    """Write a key in ``KEY_BYTES`` bytes, zero padded."""
    packed: bytes = msgpack.packb((_MAGIC, _VERSION, key.pool_id, key.handle, key.offset, key.num_bytes))
    return packed.ljust(KEY_BYTES, b"\0")


def parse_key(data: bytes) -> IpcKey:
    """Read a key.

    Raises:
        KeyRefused: the bytes are not what ``pack_key`` writes. No other error comes of any bytes.
    """
    unpacker = msgpack.Unpacker(
        use_list=False,
        max_buffer_size=KEY_BYTES,
        max_array_len=_NUM_FIELDS,
        max_bin_len=HANDLE_BYTES,
        max_str_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    try:
        unpacker.feed(data)
        fields = unpacker.unpack()
    except (msgpack.UnpackException, msgpack.BufferFull, ValueError) as error:
        raise KeyRefused(f"not a key: {type(error).__name__}") from None
    key = _check_fields(fields)
    if pack_key(key) != data:
        raise KeyRefused("a key is spelled in one way only, and zero padded")
    return key


def _check_fields(fields: object) -> IpcKey:
    if not isinstance(fields, tuple) or len(fields) != _NUM_FIELDS:
        raise KeyRefused("not the fields of a key")
    magic, version, pool_id, handle, offset, num_bytes = fields
    if magic != _MAGIC or type(version) is not int or version != _VERSION:
        raise KeyRefused(f"not a key of version {_VERSION}")
    for name, value, size in (("pool id", pool_id, POOL_ID_BYTES), ("handle", handle, HANDLE_BYTES)):
        if not isinstance(value, bytes) or len(value) != size:
            raise KeyRefused(f"the {name} is not {size} bytes")
    if not all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in (offset, num_bytes)):
        raise KeyRefused("a number is out of range")
    return IpcKey(pool_id, handle, offset, num_bytes)
