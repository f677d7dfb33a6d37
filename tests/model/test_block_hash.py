import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from twinpool.model.block_hash import block_hashes, extend_block_hashes, root_hash

ROOT = root_hash(tenant_salt="", model="m", dtype="float32", codec="raw")
token_lists = st.lists(st.integers(0, 2**31 - 1), max_size=40)


def test_only_full_blocks_are_named() -> None:
    assert [len(block_hashes(range(n), 4, ROOT)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_hash_is_xxh3_128_of_the_previous_hash_and_little_endian_tokens() -> None:
    first = xxhash.xxh3_128_digest(ROOT + b"\x01\0\0\0\x00\x02\0\0")
    assert block_hashes([1, 512, 7, 8], 2, ROOT)[0] == first
    assert block_hashes([1, 512, 7, 8], 2, ROOT)[1] == xxhash.xxh3_128_digest(first + b"\x07\0\0\0\x08\0\0\0")


@given(token_lists, token_lists, st.integers(1, 5))
def test_hashes_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int], block_tokens: int) -> None:
    for other in (right, left[: len(left) // 2] + right):
        pairs = zip(block_hashes(left, block_tokens, ROOT), block_hashes(other, block_tokens, ROOT), strict=False)
        for index, (ours, theirs) in enumerate(pairs):
            end = (index + 1) * block_tokens
            assert (ours == theirs) == (left[:end] == other[:end])


@given(token_lists, st.lists(st.integers(0, 40)), st.integers(1, 5))
def test_a_growing_sequence_gets_the_hashes_of_the_whole(tokens: list[int], cuts: list[int], block_tokens: int) -> None:
    hashes: list[bytes] = []
    for cut in [*sorted(cuts), len(tokens)]:
        extend_block_hashes(hashes, tokens[:cut], block_tokens, ROOT)
    assert hashes == block_hashes(tokens, block_tokens, ROOT)


def test_lists_tuples_and_arrays_of_any_width_hash_alike() -> None:
    tokens = [3, 1, 4, 1, 5, 9]
    forms = (tuple(tokens), np.array(tokens), np.array(tokens, np.int32), np.array(tokens, np.uint64))
    assert all(block_hashes(form, 2, ROOT) == block_hashes(tokens, 2, ROOT) for form in forms)


def test_every_field_of_the_root_counts_and_none_runs_into_the_next() -> None:
    base = {"tenant_salt": "a", "model": "b", "dtype": "c", "codec": "d"}
    changed = [base | {name: value} for name in base for value in ("", "x", "ab", "ä")]
    moved = [base | {"tenant_salt": "ab", "model": ""}, base | {"tenant_salt": "", "model": "ab"}]
    roots = {root_hash(**fields) for fields in [base, *changed, *moved]}
    assert len(roots) == 1 + len(changed) + len(moved)


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**64])
def test_a_token_id_that_does_not_fit_is_refused_not_wrapped(token_id: int) -> None:
    hashes: list[bytes] = []
    with pytest.raises(ValueError, match="token id"):
        extend_block_hashes(hashes, [0, token_id], 2, ROOT)
    assert hashes == []
