"""What a worker keeps of each handoff beside its state machine: blocks, peers and an alarm.

State with no policy; sources.py and targets.py own it.
"""

from collections.abc import Callable

from twinpool.kv_transfer.link import BlockIds
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.kv_transfer.turns import Alarm, Turns

PeerId = tuple[str, str]  # worker and incarnation


class OutgoingHandoff:
    """One request's handoff at its source, through all its epochs."""

    def __init__(
        self,
        machine: SourceHandoff,
        block_ids: BlockIds,
        turns: Turns,
        tick: Callable[[], None],
        *,
        allows_loss: bool,
    ) -> None:
        self.machine = machine
        self.block_ids = block_ids
        self.allows_loss = allows_loss
        self.epoch = machine.epoch  # the newest that was named
        self.targets: dict[int, Pair] = {}  # by epoch
        self.alarm = Alarm(turns, tick)


class IncomingHandoff:
    """One epoch of one request's handoff at its target."""

    def __init__(self, machine: TargetHandoff, source: PeerId, turns: Turns, ring: Callable[[], None]) -> None:
        self.machine = machine
        self.source = source
        self.pair: Pair | None = None  # once the source spoke of it
        self.num_tokens = 0  # as the gateway says
        self.block_ids: BlockIds | None = None
        self.alarm = Alarm(turns, ring)
