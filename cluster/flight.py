"""One request at its gateway: the tokens on their way to the client, and where its time went.

Knows no worker's protocol and no gRPC.
"""

import asyncio
from dataclasses import dataclass, field

from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import FinishReason, Request


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens accepted together; they begin at ``index`` of the answer."""

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(slots=True)
class Record:
    """What workers and gateway measured of one request; durations in seconds."""

    prefill_worker: str = ""
    decode_worker: str = ""
    placement: str = ""
    attempts: int = 1
    held_s: float = 0.0  # in the router's queue
    queue_s: float = 0.0  # arrival to the first prefill step
    prefill_s: float = 0.0
    cached_tokens: int = 0
    handoff_s: float = 0.0
    wire_s: float = 0.0
    exposed_s: float = 0.0
    kv_bytes: int = 0
    first_token_s: float | None = None  # gateway clock
    last_token_s: float | None = None
    num_tokens: int = 0


@dataclass(slots=True, eq=False)
class Flight:
    """A request from acceptance to its end. The dispatcher writes, the client's stream reads."""

    request: Request
    arrived_s: float
    deadline_s: float = float("inf")  # gateway clock
    record: Record = field(default_factory=Record)
    _pieces: asyncio.Queue[Piece | TwinpoolError] = field(default_factory=asyncio.Queue)

    def push(self, piece: Piece, now: float) -> None:
        """Pass tokens on, and note when they came."""
        record = self.record
        if piece.token_ids:
            record.first_token_s = now if record.first_token_s is None else record.first_token_s
            record.last_token_s = now
            record.num_tokens += len(piece.token_ids)
        self._pieces.put_nowait(piece)

    def fail(self, error: TwinpoolError) -> None:
        """End the stream with an error, after the tokens already passed on."""
        self._pieces.put_nowait(error)

    async def next_piece(self) -> Piece:
        """The next tokens. Raises the error that ended the request."""
        piece = await self._pieces.get()
        if isinstance(piece, TwinpoolError):
            raise piece
        return piece

    @property
    def ttft_s(self) -> float:
        """Arrival to first token, at this gateway; 0 before there is one."""
        first = self.record.first_token_s
        return 0.0 if first is None else first - self.arrived_s

    @property
    def tpot_s(self) -> float:
        """Mean gap between later tokens; 0 for a single token."""
        first, last, count = self.record.first_token_s, self.record.last_token_s, self.record.num_tokens
        return (last - first) / (count - 1) if first is not None and last is not None and count > 1 else 0.0
