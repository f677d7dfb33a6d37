"""Requests at their gateway: the tokens on their way to the client, and where the time went.

Knows no worker's protocol and no gRPC.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import FinishReason, Request
from twinpool.core.sampling import TokenLogprobs
from twinpool.protos.twinpool.v1 import generation_pb2
from twinpool.router.standing import USUAL, Standing

MAX_JOINED = 256  # pieces that go out together: a message with logarithms stays small, however slowly a client reads


class Piece(NamedTuple):
    """Tokens accepted together; they begin at ``index`` of the answer. Logarithms where workers sent them."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the tokens
    prompt_logprobs: Sequence[generation_pb2.TokenLogprobs] = ()  # of the prompt's tokens but the first; may be many


@dataclass(slots=True)
class Record:
    """What workers and gateway measured of one request; durations in seconds."""

    prefill_worker: str = ""
    decode_worker: str = ""
    placement: str = ""
    attempts: int = 1
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


News = Piece | TwinpoolError


@dataclass(slots=True, eq=False)
class Flight:
    """A request from acceptance to its end. The dispatcher writes, the client's stream reads (see Flights)."""

    request: Request
    arrived_s: float
    deadline_s: float  # gateway clock
    _inbox: "Inbox"
    record: Record = field(default_factory=Record)
    standing: Standing = USUAL

    def push(self, piece: Piece, now: float) -> None:
        """Pass tokens on, and note when they came."""
        record = self.record
        if piece.token_ids:
            record.first_token_s = now if record.first_token_s is None else record.first_token_s
            record.last_token_s = now
            record.num_tokens += len(piece.token_ids)
        self._inbox.put(self.request.choice, piece)

    def fail(self, error: TwinpoolError) -> None:
        """End the stream with an error, after the tokens already passed on."""
        self._inbox.put(self.request.choice, error)

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


class Inbox:
    """What the answers of one call have to say until its one reader takes it. For one event loop, not for threads.

    A reader that comes late takes all that an answer has said meanwhile as one piece, so that it catches up with fewer
    messages; nobody waits for pieces to join.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[News]] = {}  # by choice, in the order in which they began to wait
        self._reader: asyncio.Future[None] | None = None

    def put(self, choice: int, news: News) -> None:
        """Keep it, and wake the reader. After an error of a choice, nothing may follow from it."""
        waiting = self._waiting.get(choice)
        if waiting is None:
            self._waiting[choice] = [news]
        else:
            waiting.append(news)
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():  # done: cancelled
            reader.set_result(None)

    async def take(self) -> tuple[int, News]:
        """The news of the choice that waited longest: an error, or its tokens up to now."""
        while not self._waiting:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        choice = next(iter(self._waiting))
        news = self._waiting.pop(choice)
        if len(news) == 1:
            return choice, news[0]
        pieces = [piece for piece in news[:MAX_JOINED] if isinstance(piece, Piece)]
        if len(pieces) < len(news):
            self._waiting[choice] = news[len(pieces) :]  # an error, or what is too much for one message
        return choice, _joined(pieces)


def _joined(pieces: Sequence[Piece]) -> Piece:
    """One piece in place of several that follow each other."""
    return Piece(
        pieces[0].index,
        tuple(chain.from_iterable([piece.token_ids for piece in pieces])),
        pieces[-1].finish_reason,
        tuple(chain.from_iterable([piece.logprobs for piece in pieces])),
        pieces[0].prompt_logprobs,
    )


class Flights:
    """The answers of one client call, in the order in which they have news."""

    def __init__(
        self, requests: Sequence[Request], arrived_s: float, deadline_s: float, standing: Standing = USUAL
    ) -> None:
        """``requests``: that of choice i at place i."""
        self._inbox = Inbox()
        self.of_choice = tuple(
            Flight(request, arrived_s, deadline_s, self._inbox, standing=standing) for request in requests
        )
        self._open = {request.choice for request in requests}

    @property
    def num_open(self) -> int:
        """Answers that have not ended."""
        return len(self._open)

    def end(self, choice: int) -> None:
        """An answer is complete: what workers still say of it counts for nothing."""
        self._open.discard(choice)

    def is_over(self, choice: int) -> bool:
        """Whether an answer is complete."""
        return choice not in self._open

    async def next_piece(self) -> tuple[int, Piece]:
        """All next tokens of a choice, and which. Raises the error that ended a choice, and so the call."""
        while True:
            choice, news = await self._inbox.take()
            if choice not in self._open:
                continue
            if isinstance(news, TwinpoolError):
                raise news
            return choice, news
