from enum import StrEnum

import pytest

from twinpool.core.errors import Internal
from twinpool.kv_transfer.phases import SOURCE_MOVES, TARGET_MOVES, SourcePhase, TargetPhase, check_move


def test_a_move_that_the_table_does_not_list_raises():
    class Phase(StrEnum):
        HERE = "here"
        THERE = "there"

    moves = {Phase.HERE: frozenset({Phase.THERE}), Phase.THERE: frozenset()}
    check_move(moves, Phase.HERE, Phase.THERE)
    with pytest.raises(Internal, match="there -> here"):
        check_move(moves, Phase.THERE, Phase.HERE)


@pytest.mark.parametrize(
    ("moves", "first", "last"),
    [
        (SOURCE_MOVES, SourcePhase.QUEUED, {SourcePhase.COMMITTED, SourcePhase.ENDED}),
        (TARGET_MOVES, TargetPhase.NEW, {TargetPhase.COMMITTED, TargetPhase.ENDED}),
    ],
)
def test_every_phase_can_be_reached_and_only_the_last_ones_cannot_be_left(moves, first, last):
    reached, todo = {first}, [first]
    while todo:
        new = moves[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(moves) == set(type(first))
    assert {phase for phase in moves if not moves[phase]} == last
