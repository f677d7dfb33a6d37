"""What moves the chunks of a link: an open connection that takes messages, and how a chunk is cut into them.

Knows no group, no codec and no blocks: a message is bytes somewhere.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout

Wait = Callable[[], None]  # until what was posted is over; LinkError when it fails or its deadline passes


@dataclass(frozen=True, slots=True)
class Cut:
    """How the raw KV of a chunk is cut into messages, alike at both ends; a chunk that is coded is one message."""

    min_run_bytes: int  # a block that has so many in the chunk is a message of its own, and needs no staging
    message_bytes: int  # other blocks go together, in messages of about that size

    def is_direct(self, span: Span, layout: KVLayout) -> bool:
        """Whether each message is one block's part of the span, as it lies in a pool."""
        return span.num_layers * layout.block_layer_bytes >= self.min_run_bytes

    def blocks_per_message(self, span: Span, layout: KVLayout) -> int:
        """Of a span of whole blocks; the last message may have fewer."""
        if self.is_direct(span, layout):
            return 1
        return max(1, self.message_bytes // (span.num_layers * layout.block_layer_bytes))


class Wire(Protocol):
    """One end of an open connection that exchanges chunks: posting returns at once, waiting has a deadline."""

    cut: Cut | None  # None: a chunk is one message, and blocks are never sent from or received into

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        """Post chunk number ``chunk``; its wait ends when the peer has taken it. Raises LinkError.

        Args:
            parts: its messages, each ready when the iterator yields it. After the last one ``header`` is ready, too.
        """
        ...

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        """Post the buffers for chunk number ``chunk``; its wait ends when they are full. Raises LinkError.

        Args:
            arrived: called by the wait, for each of ``parts`` in order, once it is full.
        """
        ...

    def cancel(self) -> None:
        """Lose the connection: on return nothing of what was posted is read or written any more. From any thread.

        Only for wires with a ``cut``. A wait that is under way may go on until its deadline.
        """
        ...

    def close(self) -> None:
        """Drop the connection and every descriptor."""
        ...
