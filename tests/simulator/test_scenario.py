"""Values that a simulated run depends on."""

from dataclasses import FrozenInstanceError

import pytest

from twinpool.core.errors import SpecError
from twinpool.simulator.scenario import PrefixCache

from .builders import kind, scenario


def test_pieces_are_whole_blocks_where_prefixes_are_shared():
    one = kind(block_tokens=16)
    assert scenario().piece_blocks(one) == 0
    shares = scenario(prefix_cache=PrefixCache.HASHES, hash_tokens=512)
    assert shares.shares_prefixes
    assert shares.piece_blocks(one) == 32
    with pytest.raises(SpecError, match="pieces of 512 tokens, which blocks of 48 do not divide"):
        shares.piece_blocks(kind(block_tokens=48))


def test_a_scenario_does_not_change():
    with pytest.raises(FrozenInstanceError):
        scenario().seed = 1  # type: ignore[misc]
