"""What goes between a worker's engine thread and its control thread: orders' destinations, events, and the load.

A contract only.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from twinpool.kv_transfer.plan import Span
from twinpool.model.sequence import Key, Token

NOT_FINITE = "the model's logits are not finite"


class Destination(Enum):
    """Where a prompt's KV goes after prefill."""

    HANDOFF = "handoff"
    LOCAL = "local"
    NOWHERE = "nowhere"  # the first token is the only one


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker publishes of itself after each step; see WorkerView in worker.proto."""

    free_blocks: int
    running: int
    context_tokens: int
    waiting_prefills: int
    waiting_prefill_tokens: int
    reservations: int
    reserved_blocks: int
    parked_blocks: int
    peak_blocks: int
    cause: str
    preempted: int  # sequences so far
    wants: int  # handoffs that asked for blocks so far; the other numbers count these and no later ones


class EngineEvents(Protocol):
    """What the engine reports, called on the engine thread; none may block."""

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None: ...
    def group_ready(self, key: Key, span: Span) -> None: ...
    def computed(self, key: Key, first_token: int, at_s: float) -> None: ...
    def cancel_source(self, key: Key) -> None: ...
    def demote(self, key: Key) -> None: ...
    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None: ...
    def preempted(self, key: Key) -> None: ...
    def failed(self, key: Key, reason: str) -> None: ...
    def stepped(self, tokens: list[Token], load: Load) -> None: ...
    def cache_listed(self, gateway_id: str, hashes: list[bytes]) -> None: ...
    def cache_changed(self, changes: dict[bytes, bool]) -> None: ...
    def crashed(self, error: Exception) -> None: ...
