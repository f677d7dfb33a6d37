"""An ordered stream of messages between two workers, as the control thread sees it; and one inside a process.

Knows neither gRPC nor what the messages mean.
"""

import asyncio
from typing import Protocol

from twinpool.protos.twinpool.v1 import worker_pb2 as pb


class ChannelClosed(Exception):
    """The stream is over; the text says why."""


class PeerChannel(Protocol):
    """One end of the stream."""

    def send(self, message: pb.PeerMessage) -> None:
        """Queue a message. Never blocks; after the end it does nothing."""
        ...

    async def receive(self) -> pb.PeerMessage:
        """Return the next message; raises ChannelClosed at the end."""
        ...

    async def close(self) -> None:
        """End the stream both ways. Idempotent."""
        ...


class MemoryChannel:
    """One end of a stream inside a process (see ``memory_channels``)."""

    def __init__(self, inbox: "asyncio.Queue[pb.PeerMessage | None]", outbox: "asyncio.Queue[pb.PeerMessage | None]"):
        self._inbox = inbox
        self._outbox = outbox
        self._is_closed = False

    def send(self, message: pb.PeerMessage) -> None:
        """See PeerChannel."""
        if not self._is_closed:
            self._outbox.put_nowait(message)

    async def receive(self) -> pb.PeerMessage:
        """See PeerChannel."""
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)
            raise ChannelClosed("the peer ended the stream")
        return message

    async def close(self) -> None:
        """See PeerChannel."""
        self.cut()

    def cut(self) -> None:
        """End the stream at once, as the death of either worker does."""
        self._is_closed = True
        self._inbox.put_nowait(None)
        self._outbox.put_nowait(None)


def memory_channels() -> tuple[MemoryChannel, MemoryChannel]:
    """Return the two ends of a stream; both belong to the running event loop."""
    there: asyncio.Queue[pb.PeerMessage | None] = asyncio.Queue()
    back: asyncio.Queue[pb.PeerMessage | None] = asyncio.Queue()
    return MemoryChannel(back, there), MemoryChannel(there, back)
