"""A key says where a pool is, in one way only, and any other bytes are refused."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.cuda_ipc_key import HANDLE_BYTES, KEY_BYTES, IpcKey, KeyRefused, pack_key, parse_key

KEY = IpcKey(b"p" * 16, b"h" * HANDLE_BYTES, 768, 1 << 40)
NUMBERS = st.integers(0, 2**63 - 1)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=64, max_size=64), NUMBERS, NUMBERS)
def test_a_key_comes_back_as_it_was_in_fixed_size(pool_id: bytes, handle: bytes, offset: int, size: int) -> None:
    key = IpcKey(pool_id, handle, offset, size)
    assert len(pack_key(key)) == KEY_BYTES
    assert parse_key(pack_key(key)) == key


@given(st.binary(max_size=2 * KEY_BYTES))
def test_bytes_that_are_no_key_are_refused_and_nothing_else_comes_of_them(data: bytes) -> None:
    with pytest.raises(KeyRefused):
        parse_key(data)


@given(st.integers(0, KEY_BYTES - 1), st.integers(1, 255))
def test_no_two_spellings_mean_the_same_key(place: int, change: int) -> None:
    damaged = bytearray(pack_key(KEY))
    damaged[place] ^= change
    with suppress(KeyRefused):
        assert parse_key(bytes(damaged)) != KEY


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((b"TPIC", 1, b"p" * 16, b"h" * 64, 0), "not the fields"),
        ((b"TPKV", 1, b"p" * 16, b"h" * 64, 0, 1), "version 1"),
        ((b"TPIC", 2, b"p" * 16, b"h" * 64, 0, 1), "version 1"),
        ((b"TPIC", True, b"p" * 16, b"h" * 64, 0, 1), "version 1"),
        ((b"TPIC", 1, b"p" * 15, b"h" * 64, 0, 1), "pool id is not 16 bytes"),
        ((b"TPIC", 1, b"p" * 16, b"h" * 63, 0, 1), "handle is not 64 bytes"),
        ((b"TPIC", 1, b"p" * 16, 64, 0, 1), "handle is not 64 bytes"),
        ((b"TPIC", 1, b"p" * 16, b"h" * 64, -1, 1), "out of range"),
        ((b"TPIC", 1, b"p" * 16, b"h" * 64, 0, 2**63), "out of range"),
        ((b"TPIC", 1, b"p" * 16, b"h" * 64, 0.0, 1), "out of range"),
    ],
)
def test_a_field_that_is_wrong_is_refused(fields: tuple[object, ...], why: str) -> None:
    with pytest.raises(KeyRefused, match=why):
        parse_key(msgpack.packb(fields).ljust(KEY_BYTES, b"\0"))
