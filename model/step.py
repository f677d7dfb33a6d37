"""What a batching policy decides for one engine step. Pure values; performed by the engine, never by the policy."""

from dataclasses import dataclass
from enum import StrEnum


class Wait(StrEnum):
    """Why the oldest waiting piece of work did not go this step; shown as a metric and in `twinpool status`."""

    NOTHING = ""
    PREFILL_BLOCKS = "prefill waits for free blocks"
    PREFILL_PARKED = "prefill waits because finished KV is parked for full decode workers"
    GRANT_BLOCKS = "handoffs wait for blocks above the forecast of running sequences"
    GRANT_SEQUENCES = "handoffs wait for a running sequence to end"
    DECODE_BLOCKS = "sequences wait for blocks that come back"
    DECODE_PREEMPTED = "the youngest sequences made room for older ones"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next ``num_tokens`` tokens of the prompt in ``row`` of the view."""

    row: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of one service. Rows index the view that the decision was made from.

    ``repeat`` says for how many steps the decision stays the same if no event comes; the live loop uses 1.
    """

    chunks: tuple[Chunk, ...] = ()
    decode_rows: tuple[int, ...] = ()
    preempt: tuple[int, ...] = ()  # give up their blocks, youngest first
    grants: tuple[int, ...] = ()
    demote_blocks: int = 0  # parked blocks to give up, youngest first
    repeat: int = 1
    wait: Wait = Wait.NOTHING

    @property
    def is_empty(self) -> bool:
        """Whether the device has nothing to compute."""
        return not self.chunks and not self.decode_rows
