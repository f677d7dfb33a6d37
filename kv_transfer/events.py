"""What an end of a handoff is told beside messages (events), and what it asks for (actions).

Frozen values; each says which end it is for. Knows no link, no clock and no memory.
"""

from dataclasses import dataclass

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Message, Next, Seal, Started, Stopped
from twinpool.kv_transfer.plan import Span

# Events.


@dataclass(frozen=True, slots=True)
class Admitted:
    """Source: the engine owns blocks for the prompt and starts to compute."""


@dataclass(frozen=True, slots=True)
class GroupReady:
    """Source: the span's KV is computed (or came from the source's prefix cache). Each (layer, block) comes once."""

    span: Span


@dataclass(frozen=True, slots=True)
class Computed:
    """Source: every span was reported and the first token sampled, at ``at`` on the source's monotonic clock."""

    first_token: int
    at: float


@dataclass(frozen=True, slots=True)
class ComputeFailed:
    """Source: the engine gave the request up."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkSent:
    """Source: ``Transmit(epoch, group, ...)`` is link-complete, and was on the wire between these times."""

    epoch: int
    group: int
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Retarget:
    """Source: the gateway named another target, under a higher epoch."""

    epoch: int
    codec: CodecName = CodecName.RAW


@dataclass(frozen=True, slots=True)
class Demote:
    """Source: the engine asks for the room of KV that waits for a grant. Ignored under a grant: the engine hears of it.

    Between two targets the KV is given up, too, once the sends to the former are over.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Target: the gateway's order came; the KV of this many tokens is expected."""

    num_tokens: int
    allows_loss: bool = True


@dataclass(frozen=True, slots=True)
class Bound:
    """Target: the engine bound the blocks asked for; the leading ``skip_blocks`` it already holds."""

    skip_blocks: int


@dataclass(frozen=True, slots=True)
class GroupReceived:
    """Target: ``Receive(seq, ...)`` is over: its bytes are in the blocks, and they are (or are not) the ones sent."""

    seq: int
    digest_ok: bool


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """Either: the link of this epoch is torn down; no thread here reads or writes a block for it any more."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """Either: the peer of this epoch cannot be reached."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Either: the peer of the current epoch is alive (any message on the stream, heartbeats at least)."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Either: the gateway no longer wants the request, or wants it under another epoch (target)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Either: ``next_deadline`` may have passed. Early or spare ticks do nothing."""


SourceMessage = Grant | Committed | Abort
EngineEvent = Admitted | GroupReady | Computed | ComputeFailed | Demote
SourceEvent = SourceMessage | EngineEvent | LinkSent | LinkClosed | PeerLost | Heard | Retarget | Cancel | Tick

TargetMessage = Started | Next | Seal | Abort | Stopped
TargetEvent = TargetMessage | Reserve | Bound | GroupReceived | LinkClosed | PeerLost | Heard | Cancel | Tick


# Actions, to be performed in order.


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the peer of the message's epoch; if that peer is lost, report ``PeerLost`` (later, not from within)."""

    message: Message


@dataclass(frozen=True, slots=True)
class Transmit:
    """Source: send ``Next`` with the link's next seq, then the bytes.

    Report ``LinkSent`` when the link has taken them in full, or ``LinkClosed`` once for all that is outstanding.
    """

    epoch: int
    group: int  # counted from 0 in each epoch
    span: Span
    coding: Coding = RAW


@dataclass(frozen=True, slots=True)
class Receive:
    """Target: post the link's receive ``seq``, into the bound blocks or (``discard``) into scratch memory.

    Report ``GroupReceived``, or ``LinkClosed`` for all; a discarded group is not reported.
    """

    seq: int
    span: Span
    discard: bool = False
    coding: Coding = RAW


@dataclass(frozen=True, slots=True)
class BindBlocks:
    """Target: ask the engine for this many blocks, the held prefix included; it answers ``Bound`` when it may."""

    num_blocks: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Target: the blocks hold the request's KV and belong to the sequence from now on."""

    seal: Seal
    codec: CodecName = CodecName.RAW  # that those which were sent came through


@dataclass(frozen=True, slots=True)
class Release:
    """Either: this handoff needs its blocks no longer; drop its references, and a ``BindBlocks`` not yet answered.

    Comes once, last, unless the target adopts.
    """


@dataclass(frozen=True, slots=True)
class Parked:
    """Source: tell the gateway TRANSFER_FAILED; the KV is kept for ``Limits.park_s``, waiting for ``Retarget``."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Either: tell the gateway that this epoch failed here."""

    epoch: int
    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Either: close the link of this epoch and report ``LinkClosed``, at once if there is none. May come again."""

    epoch: int
    reason: str


Action = Send | Transmit | Receive | BindBlocks | Adopt | Release | Parked | Failed | CloseLink
