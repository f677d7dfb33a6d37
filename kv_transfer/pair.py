"""The conversation between two workers about KV that moves one way: hello, heartbeats, messages in order, an end.

Knows who speaks and that they understand each other. Handoffs and the link are its owner's.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.channel import ChannelClosed, PeerChannel
from twinpool.kv_transfer.link_choice import NOTHING, LinkOffer
from twinpool.kv_transfer.turns import Turns
from twinpool.kv_transfer.wire import WireError
from twinpool.model.kv_layout import PROTOCOL_VERSION, KVLayout
from twinpool.protos.convert import address_from_proto, address_to_proto
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


class PairRefused(Exception):
    """The two workers must not exchange KV; the text says why."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a worker says of itself to each peer, and insists on."""

    address: WorkerAddress
    layout: KVLayout
    offer: LinkOffer = NOTHING

    def hello(self) -> pb.PeerMessage:
        """The first message, either way."""
        layout = self.layout
        hello = pb.PairHello(
            address=address_to_proto(self.address),
            layout_hash=layout.digest(),
            layout=layout.describe(),
            link_kinds=self.offer.kinds,
            host=self.offer.host,
            device=self.offer.device,
            chunk_bytes=self.offer.chunk_bytes,
            protocol_version=PROTOCOL_VERSION,
        )
        return pb.PeerMessage(hello=hello)

    def check(self, envelope: pb.PeerMessage) -> WorkerAddress:
        """Return who speaks.

        Raises:
            PairRefused: it is no hello, or of a worker that speaks another protocol, or whose KV has another layout.
        """
        hello = envelope.hello
        if envelope.WhichOneof("kind") != "hello" or not hello.address.worker_id:
            raise PairRefused("the peer did not say hello")
        peer = address_from_proto(hello.address)
        version = hello.protocol_version or _stated_version(hello.layout)
        if version != PROTOCOL_VERSION:
            spoken = f"protocol {version}" if version else "a protocol that this worker does not know"
            raise PairRefused(
                f"{peer.worker_id} speaks {spoken}, {self.address.worker_id} protocol {PROTOCOL_VERSION}: "
                "workers that hand KV over must run the same version of twinpool"
            )
        if hello.layout_hash != self.layout.digest():
            theirs, ours = hello.layout[:500], self.layout.describe()
            raise PairRefused(f"KV layouts differ: {peer.worker_id} has {theirs}; {self.address.worker_id} has {ours}")
        return peer


def _stated_version(layout: str) -> int:
    """The protocol of a worker from before it had a field; 0: it does not say."""
    found = re.match(r"protocol (\d{1,9}),", layout)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a pair says something, and how long its silence is borne."""

    heartbeat_s: float = 1.0
    lease_s: float = 10.0


class PairOwner(Protocol):
    """Who listens to a pair; called in turns."""

    def on_open(self, pair: "Pair") -> None:
        """The peer is known."""
        ...

    def on_message(self, pair: "Pair", envelope: pb.PeerMessage) -> None:
        """The peer said something that is neither hello nor heartbeat. Raises WireError to end the pair."""
        ...

    def on_heard(self, pair: "Pair") -> None:
        """The peer is alive; said at every heartbeat."""
        ...

    def on_lost(self, pair: "Pair") -> None:
        """The end: no message comes or goes any more. Comes once."""
        ...


class Pair:
    """One conversation. ``lost_reason`` is set when it is over; it never begins again."""

    def __init__(self, introduction: Introduction, owner: PairOwner, turns: Turns, pulse: Pulse) -> None:
        self.peer: WorkerAddress | None = None
        self.peer_offer: LinkOffer | None = None  # of links; once the peer said hello
        self.lost_reason: str | None = None
        self.num_heard = 0  # messages, heartbeats not counted
        self._introduction = introduction
        self._owner = owner
        self._turns = turns
        self._pulse = pulse
        self._channel: PeerChannel | None = None  # once both have said hello
        self._backlog: list[pb.PeerMessage] = []
        self._beat: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_lost(self) -> bool:
        return self.lost_reason is not None

    @property
    def name(self) -> str:
        """Whom the pair is with, for people."""
        return self.peer.worker_id if self.peer is not None else "a peer that did not say hello"

    def send(self, message: pb.PeerMessage) -> None:
        """Say something, as soon as both have said hello. A lost pair says nothing."""
        if self._channel is not None:
            self._channel.send(message)
        elif not self.is_lost:
            self._backlog.append(message)

    # --- Life -------------------------------------------------------------------------------------------------------

    def call(self, peer: WorkerAddress, dial: Callable[[WorkerAddress], Awaitable[PeerChannel]]) -> None:
        """Begin as the source, with this incarnation of this worker."""
        self.peer = peer
        self._task = asyncio.create_task(self._call(peer, dial))
        self._task.add_done_callback(_report_bug)

    def answer(self, channel: PeerChannel) -> "asyncio.Task[None]":
        """Begin as the target of whoever called; the task is over when the pair is."""
        self._task = asyncio.create_task(self._answer(channel))
        self._task.add_done_callback(_report_bug)
        return self._task

    def end(self, reason: str) -> None:
        """Hang up."""
        self._lose(reason)
        if self._task is not None:
            self._task.cancel()

    async def join(self) -> None:
        """Wait until nothing of the pair is left, after its end."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _call(self, peer: WorkerAddress, dial: Callable[[WorkerAddress], Awaitable[PeerChannel]]) -> None:
        channel: PeerChannel | None = None
        try:
            async with asyncio.timeout(self._pulse.lease_s):
                channel = await dial(peer)
                channel.send(self._introduction.hello())
                hello = await channel.receive()
                answered = self._introduction.check(hello)
            if (answered.worker_id, answered.incarnation) != (peer.worker_id, peer.incarnation):
                raise PairRefused(f"{peer.address} is {answered.worker_id} now, started anew")
            await self._converse(channel, hello.hello)
        except (ChannelClosed, PairRefused, WireError, TimeoutError) as error:
            self._lose(self._reason(error))
        finally:
            await self._finish(channel)

    async def _answer(self, channel: PeerChannel) -> None:
        try:
            async with asyncio.timeout(self._pulse.lease_s):
                hello = await channel.receive()
            channel.send(self._introduction.hello())  # even if it refuses: the caller then knows why
            self.peer = self._introduction.check(hello)
            await self._converse(channel, hello.hello)
        except (ChannelClosed, PairRefused, WireError, TimeoutError) as error:
            self._lose(self._reason(error))
        finally:
            await self._finish(channel)

    async def _converse(self, channel: PeerChannel, theirs: pb.PairHello) -> None:
        self.peer_offer = LinkOffer.heard(theirs.link_kinds, theirs.host, theirs.device, theirs.chunk_bytes)
        self._channel = channel
        for message in self._backlog:
            channel.send(message)
        self._backlog.clear()
        self._turns.post(partial(self._owner.on_open, self))
        self._send_heartbeat()
        while True:
            async with asyncio.timeout(self._pulse.lease_s):
                envelope = await channel.receive()
            if envelope.WhichOneof("kind") == "heartbeat":
                self._turns.post(partial(self._owner.on_heard, self))
            else:
                self.num_heard += 1
                self._turns.post(partial(self._owner.on_message, self, envelope))

    def _send_heartbeat(self) -> None:
        if not self.is_lost:
            self.send(pb.PeerMessage(heartbeat=pb.Heartbeat()))
            self._beat = self._turns.call_at(self._turns.clock() + self._pulse.heartbeat_s, self._send_heartbeat)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self.name} was silent for {self._pulse.lease_s:g} s"
        return f"{self.name}: {error}"

    def _lose(self, reason: str) -> None:
        if self.lost_reason is None:
            self.lost_reason = reason
            self._channel = None
            self._backlog.clear()
            if self._beat is not None:
                self._beat.cancel()
            self._turns.post(partial(self._owner.on_lost, self))

    async def _finish(self, channel: PeerChannel | None) -> None:
        self._lose("the worker is closing")
        if channel is not None:
            await channel.close()


def _report_bug(task: "asyncio.Task[None]") -> None:
    """The owner has heard that the pair is lost; this says what no peer can have caused."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a pair broke", exc_info=error)
