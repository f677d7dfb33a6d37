"""Who found no room stands for all that need no less."""

import pytest

from twinpool.router.room import Need, RoomMemo
from twinpool.router.route import Hold, HoldReason

HOLD = Hold(HoldReason.DECODE_BLOCKS)
BEATEN = Need(10, 5, None)


@pytest.mark.parametrize(
    ("need", "hold"),
    [
        (Need(10, 5, None), HOLD),
        (Need(11, 4, None), HOLD),
        (Need(9, 9, None), None),
        (Need(10, 4, None), None),
        (Need(20, 1, None), None),
        (Need(20, 5, "p"), None),
    ],
)
def test_what_needs_no_less_of_the_same_is_not_asked_again(need: Need, hold: Hold | None) -> None:
    memo = RoomMemo()
    memo.note(BEATEN, 7, HOLD)
    assert memo.recall(need, 7) == hold
    assert memo.recall(need, 8) is None, "something has changed"
    assert memo.recall(need, 7) is None


OF_ROOM = ("NO_WORKERS", "NO_DECODE_WORKERS", "DECODE_BLOCKS", "PREFILL_QUEUE")


@pytest.mark.parametrize("reason", [HoldReason[name] for name in OF_ROOM])
def test_what_lacks_workers_or_room_is_remembered(reason: HoldReason) -> None:
    memo = RoomMemo()
    memo.note(BEATEN, 1, Hold(reason))
    assert memo.recall(BEATEN, 1) == Hold(reason)
