"""What the two ends of a handoff tell each other, and how long they wait.

Frozen values, one class for each message of PeerMessage that names a request. Knows no link, no clock and no memory;
how the ends behave is in source.py and target.py, what else they are told and what they ask for in events.py.
"""

from dataclasses import dataclass

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.plan import Span


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an end waits for what, in seconds of its own monotonic clock, and how much it announces at once."""

    lease_s: float = 10.0  # silence of the peer, after which it counts as lost
    park_s: float = 10.0  # KV whose target was lost is kept for another target
    ask_s: float = 2.0  # a source without a grant says Started again
    announce_s: float = 10.0  # a target that was told Started waits for the gateway's order
    commit_s: float = 10.0  # Seal to Committed, at the source
    verify_s: float = 5.0  # Seal to the last group, at the target
    stop_s: float = 5.0  # for what is outstanding to run out after an abort; then the link is closed
    joined_bytes: int = 16 << 20  # of KV that waits, in one group; what is announced must leave within stop_s


@dataclass(frozen=True, slots=True)
class Started:
    """Source to target: it computes the request and will send the KV of this many tokens. Repeated until granted."""

    request_id: str
    epoch: int
    num_tokens: int
    codec: CodecName = CodecName.RAW  # of all groups

    @property
    def coding(self) -> Coding:
        """How all groups are coded."""
        return Coding.of(self.codec, self.num_tokens)


@dataclass(frozen=True, slots=True)
class Grant:
    """Target to source: blocks are bound; send all but the leading ``skip_blocks``, ``window`` groups at a time."""

    request_id: str
    epoch: int
    skip_blocks: int
    window: int


@dataclass(frozen=True, slots=True)
class Next:
    """Source to target: the link's group ``seq`` carries this span."""

    request_id: str
    epoch: int
    seq: int
    span: Span
    coding: Coding = RAW  # as Started says; said again for a target that knows the handoff no more


@dataclass(frozen=True, slots=True)
class Seal:
    """Source to target: everything was sent. Times are durations on the source's clock."""

    request_id: str
    epoch: int
    num_tokens: int
    num_groups: int
    first_token: int
    since_computed_s: float  # end of the prefill's compute to this message
    wire_s: float  # a group of this handoff was on the link
    exposed_s: float  # of that, after the end of compute
    kv_bytes: int  # on the link, as coded


@dataclass(frozen=True, slots=True)
class Committed:
    """Target to source: the sequence is the target's; the source may forget it."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Either way: this epoch will not commit."""

    request_id: str
    epoch: int
    reason: str
    corrupted: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """Source to target: no byte of this epoch follows on the link."""

    request_id: str
    epoch: int


Message = Started | Grant | Next | Seal | Committed | Abort | Stopped


def answer_unknown(message: Message) -> tuple[Message, ...]:
    """What to reply, on the stream it came by, to a message for which this worker has no handoff of that epoch.

    A worker keeps a handoff until nothing of it is outstanding, so having none is proof enough for ``Stopped``. A
    ``Started`` for an unknown handoff is no case for this: it opens a ``TargetHandoff``. Nor is the data of a
    ``Next``: it must be received all the same, into scratch memory.
    """
    request_id, epoch, reason = message.request_id, message.epoch, "unknown handoff"
    match message:
        case Abort():
            return (Stopped(request_id, epoch),)
        case Grant():
            return (Abort(request_id, epoch, reason), Stopped(request_id, epoch))
        case Seal():
            return (Abort(request_id, epoch, reason),)
        case _:
            return ()
