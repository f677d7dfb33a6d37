"""What handoffs ask of the engine's side of a worker.

A contract only: who implements it hops to the engine's thread as it likes.
"""

from typing import Protocol

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.handoff import Seal


class EngineSide(Protocol):
    """Called on the control thread, in the middle of a turn: none may block, and calls back are served afterwards.

    ``epoch`` is the newest that was named for the request, whatever epoch the event began under.
    """

    def bind_blocks(self, request_id: str, epoch: int) -> None:
        """Target: find room for the request; ``TransferEndpoint.bound`` answers."""
        ...

    def adopt(self, request_id: str, epoch: int, seal: Seal, codec: CodecName) -> None:
        """Target: the blocks hold the request's KV, verified, those that were sent as ``codec`` left it; decode it."""
        ...

    def release_target(self, request_id: str, epoch: int) -> None:
        """Target: nothing writes the blocks any more, and nothing will; ``bind_blocks`` is called off."""
        ...

    def granted(self, request_id: str, epoch: int) -> None:
        """Source: the target has room; the KV does not wait any more."""
        ...

    def parked(self, request_id: str, epoch: int, reason: str) -> None:
        """Source: the target is lost and the KV kept; ask the gateway for another target."""
        ...

    def release_source(self, request_id: str, epoch: int) -> None:
        """Source: nothing reads the blocks any more. Comes once, last, for every handoff begun."""
        ...

    def failed(self, request_id: str, epoch: int, kind: FailureKind, reason: str) -> None:
        """Either: tell the gateway."""
        ...
