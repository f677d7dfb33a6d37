"""Headers survive the trip, and nothing else passes for one."""

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.kv_transfer.header import (
    HEADER_BYTES,
    MAGIC,
    VERSION,
    ChunkHeader,
    HeaderError,
    data_digest,
    handoff_id,
    is_intact,
    pack_header,
    parse_header,
)

NUMBER = st.integers(0, 2**63 - 1)
HEADERS = st.builds(
    ChunkHeader,
    handoff=st.binary(min_size=16, max_size=16),
    epoch=NUMBER,
    chunk=NUMBER,
    num_bytes=NUMBER,
    digest=st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=20))
HEADER = ChunkHeader(handoff_id("r"), 1, 2, 8, b"")


def packed(header: ChunkHeader) -> bytes:
    out = np.full(HEADER_BYTES, 255, dtype=np.uint8)
    pack_header(header, out)
    return out.tobytes()


def padded(*fields: object) -> bytes:
    return msgpack.packb(fields).ljust(HEADER_BYTES, b"\0")


@given(HEADERS)
def test_a_header_is_read_as_it_was_written(header: ChunkHeader) -> None:
    assert parse_header(packed(header)) == header


@given(HEADERS, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_what_is_read(header: ChunkHeader, at: int, flip: int) -> None:
    data = bytearray(packed(header))
    data[at] ^= flip
    with contextlib.suppress(HeaderError):
        assert parse_header(bytes(data)) != header


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_no_bytes_raise_anything_but_header_error(data: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(data)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=8), max_leaves=10))
@settings(max_examples=50)
def test_no_msgpack_value_raises_anything_but_header_error(value: object) -> None:
    data = msgpack.packb(value)
    with pytest.raises(HeaderError):
        parse_header(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        packed(HEADER)[:-1],
        packed(HEADER) + b"\0",
        packed(HEADER)[:-1] + b"\1",
        padded(b"XXXX", VERSION, HEADER.handoff, 1, 2, 8, b""),
        padded(MAGIC, VERSION + 1, HEADER.handoff, 1, 2, 8, b""),
        padded(MAGIC, True, HEADER.handoff, 1, 2, 8, b""),
        padded(MAGIC, VERSION, HEADER.handoff[:-1], 1, 2, 8, b""),
        padded(MAGIC, VERSION, HEADER.handoff, -1, 2, 8, b""),
        padded(MAGIC, VERSION, HEADER.handoff, 1, 2.0, 8, b""),
        padded(MAGIC, VERSION, HEADER.handoff, 1, 2, 2**63, b""),
        padded(MAGIC, VERSION, HEADER.handoff, 1, 2, 8, b"short"),
        padded(MAGIC, VERSION, HEADER.handoff, 1, 2, 8),
        padded(MAGIC, VERSION, HEADER.handoff, 1, 2, 8, b"", b""),
        msgpack.packb({"magic": MAGIC}).ljust(HEADER_BYTES, b"\0"),
        msgpack.packb(msgpack.ExtType(5, b"x" * 60)).ljust(HEADER_BYTES, b"\0"),
        b"\xdd\xff\xff\xff\xff".ljust(HEADER_BYTES, b"\0"),
        b"\xc6\xff\xff\xff\xff".ljust(HEADER_BYTES, b"\0"),
        b"\x91" * HEADER_BYTES,
    ],
)
def test_what_is_not_a_header_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(data)


def test_an_over_long_spelling_of_a_number_is_refused() -> None:
    data = packed(HEADER).replace(b"\x01\x02\x08", b"\x01\xcc\x02\x08")[:HEADER_BYTES]
    with pytest.raises(HeaderError, match="one way"):
        parse_header(data)


def intact(header: ChunkHeader, *, needs_digest: bool) -> bool:
    data = np.arange(8, dtype=np.uint8)
    return is_intact(np.frombuffer(packed(header), dtype=np.uint8), data, HEADER, needs_digest=needs_digest)


def test_a_chunk_is_intact_only_with_the_digest_of_its_bytes() -> None:
    digest = data_digest(np.arange(8, dtype=np.uint8))
    assert intact(ChunkHeader(HEADER.handoff, 1, 2, 8, digest), needs_digest=True)
    assert not intact(ChunkHeader(HEADER.handoff, 1, 2, 8, digest[::-1]), needs_digest=True)
    assert not intact(HEADER, needs_digest=True)
    assert intact(HEADER, needs_digest=False)


@pytest.mark.parametrize(
    "header",
    [
        ChunkHeader(handoff_id("other"), 1, 2, 8, b""),
        ChunkHeader(HEADER.handoff, 2, 2, 8, b""),
        ChunkHeader(HEADER.handoff, 1, 3, 8, b""),
        ChunkHeader(HEADER.handoff, 1, 2, 4, b""),
    ],
)
def test_a_header_of_another_chunk_is_an_error(header: ChunkHeader) -> None:
    with pytest.raises(HeaderError, match="announced"):
        intact(header, needs_digest=False)
