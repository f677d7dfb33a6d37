"""The phases of each end of a handoff, and the only moves between them.

Knows nothing of what causes a move.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from twinpool.core.errors import Internal


class SourcePhase(StrEnum):
    """How far the transfer is; computing goes on beside it."""

    QUEUED = "queued"  # the engine has not admitted the prefill
    WAITING = "waiting"  # announced, for a grant
    STREAMING = "streaming"
    SEALED = "sealed"  # all sent; for the target's word
    STOPPING = "stopping"  # nothing more is announced; sends run out
    PARKED = "parked"  # no target; kept for another one
    COMMITTED = "committed"
    ENDED = "ended"


_S = SourcePhase
SOURCE_MOVES = {
    _S.QUEUED: frozenset({_S.WAITING, _S.ENDED}),
    _S.WAITING: frozenset({_S.STREAMING, _S.STOPPING}),
    _S.STREAMING: frozenset({_S.SEALED, _S.STOPPING}),
    _S.SEALED: frozenset({_S.COMMITTED, _S.STOPPING}),
    _S.STOPPING: frozenset({_S.PARKED, _S.WAITING, _S.ENDED}),
    _S.PARKED: frozenset({_S.WAITING, _S.ENDED}),
    _S.COMMITTED: frozenset[SourcePhase](),
    _S.ENDED: frozenset[SourcePhase](),
}


SOURCE_ACTIVE = frozenset({_S.WAITING, _S.STREAMING, _S.SEALED})  # there is a target, and it must be heard of


class TargetPhase(StrEnum):
    """How far the handoff is, seen from where it goes."""

    NEW = "new"
    ANNOUNCED = "announced"  # the source computes it; no order from the gateway yet
    RESERVED = "reserved"  # ordered; the source has not started
    WANTING = "wanting"  # both: for blocks
    RECEIVING = "receiving"  # granted
    VERIFYING = "verifying"  # sealed; the last groups are on their way
    DRAINING = "draining"  # given up, but the source may still send
    COMMITTED = "committed"
    ENDED = "ended"


_T = TargetPhase
TARGET_MOVES = {
    _T.NEW: frozenset({_T.ANNOUNCED, _T.RESERVED, _T.ENDED}),
    _T.ANNOUNCED: frozenset({_T.WANTING, _T.ENDED}),
    _T.RESERVED: frozenset({_T.WANTING, _T.ENDED}),
    _T.WANTING: frozenset({_T.RECEIVING, _T.ENDED}),
    _T.RECEIVING: frozenset({_T.VERIFYING, _T.DRAINING}),
    _T.VERIFYING: frozenset({_T.COMMITTED, _T.DRAINING}),
    _T.DRAINING: frozenset({_T.ENDED}),
    _T.COMMITTED: frozenset[TargetPhase](),
    _T.ENDED: frozenset[TargetPhase](),
}

# Ordered and not yet committed: the source must be heard of.
TARGET_ORDERED = frozenset({_T.RESERVED, _T.WANTING, _T.RECEIVING, _T.VERIFYING})
TARGET_GRANTED = frozenset({_T.RECEIVING, _T.VERIFYING})  # bytes may come

_Phase = TypeVar("_Phase", bound=StrEnum)


def check_move(moves: Mapping[_Phase, frozenset[_Phase]], old: _Phase, new: _Phase) -> None:
    """Raise Internal unless the table allows ``old -> new``."""
    if new not in moves[old]:
        raise Internal(f"illegal move of a handoff: {old} -> {new}")
