"""What a gateway says in its request log of the requests of one client call.

Knows what became of a request and how its prompt is named; neither files nor threads.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from twinpool.cluster.flight import Flight, Flights
from twinpool.cluster.request_log import RequestLog
from twinpool.core.errors import Cancelled, DeadlineExceeded, NoWorkers, Overloaded
from twinpool.core.messages import Request
from twinpool.router.standing import DEFAULT_TENANT
from twinpool.simulator.traces.request_log import LoggedRequest

PIECE_TOKENS = 64
MAX_PIECES = 512  # named of one prompt: its first 32768 tokens


class RequestRecorder:
    """Notes requests in a log as their calls end."""

    def __init__(
        self, request_log: RequestLog, *, secret: str, clock: Callable[[], float], unix_clock: Callable[[], float]
    ) -> None:
        """``secret``: of this run of the cluster, shared by its gateways; pieces of prompts are named by it."""
        self._log = request_log
        self._key = hashlib.blake2b(secret.encode(), digest_size=32, person=b"request log").digest()
        self._clock = clock
        self._started_s = clock()
        self._started_unix_s = unix_clock()

    def ended(self, flights: Flights, goal_class: str, error: BaseException | None) -> None:
        """A call is over: of each of its requests, whether it was complete, or else what ended it."""
        for flight in flights.of_choice:
            ending, why = ("completed", "") if flights.is_over(flight.request.choice) else self._ending(flight, error)
            prompt = flight.request.token_ids[: flight.request.num_prompt_tokens]
            begun = self._begun(flight.request, flight.arrived_s, goal_class, ending, why)
            logged = self._with_record(replace(begun, tenant=_named(flight.standing.tenant)), flight)
            self._log.add(logged, partial(_with_names, prompt, self._key))

    def refused(
        self, requests: Sequence[Request], goal_class: str, error: BaseException, tenant: str = DEFAULT_TENANT
    ) -> None:
        """A call was refused before any of it was begun."""
        for request in requests:
            begun = self._begun(request, self._clock(), goal_class, *_ending(error))
            self._log.add(replace(begun, tenant=_named(tenant)))

    def close(self) -> None:
        """Write what waits; may wait for the disk."""
        self._log.close()

    def _ending(self, flight: Flight, error: BaseException | None) -> tuple[str, str]:
        if isinstance(error, asyncio.CancelledError) and self._clock() >= flight.deadline_s:
            return "cut", "its deadline passed"
        return _ending(error)

    def _begun(self, request: Request, arrived_s: float, goal_class: str, ending: str, why: str) -> LoggedRequest:
        since_s = arrived_s - self._started_s
        return LoggedRequest(
            arrival_unix_s=self._started_unix_s + since_s,
            arrival_s=since_s,
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=0,
            max_tokens=request.sampling.max_tokens,
            goal_class=goal_class,
            goal=request.goal,
            ending=ending,
            why=why,
        )

    def _with_record(self, logged: LoggedRequest, flight: Flight) -> LoggedRequest:
        record = flight.record
        ended_s = record.last_token_s if logged.ending == "completed" else None
        return replace(
            logged,
            output_tokens=record.num_tokens,
            ttft_s=flight.ttft_s if record.num_tokens else None,
            tpot_s=flight.tpot_s if record.num_tokens > 1 else None,
            e2e_s=(self._clock() if ended_s is None else ended_s) - flight.arrived_s,
            prefill_worker=record.prefill_worker,
            decode_worker=record.decode_worker,
            placement=record.placement,
            attempts=record.attempts,
            cached_tokens=record.cached_tokens,
            queue_s=record.queue_s,
            prefill_s=record.prefill_s,
            handoff_s=record.handoff_s,
            wire_s=record.wire_s,
            exposed_s=record.exposed_s,
            kv_bytes=record.kv_bytes,
        )


def _ending(error: BaseException | None) -> tuple[str, str]:
    """In one word, and why: in our own words, never in those of an error that may quote what it met."""
    match error:
        case None | Cancelled() | asyncio.CancelledError():
            return "cancelled", ""
        case Overloaded() | NoWorkers():
            return "rejected", str(error)
        case DeadlineExceeded():
            return "cut", str(error)
    return "failed", type(error).__name__


def _named(tenant: str) -> str:
    """As a log has it: empty for who named none."""
    return "" if tenant == DEFAULT_TENANT else tenant


def _with_names(prompt: Sequence[int], key: bytes, logged: LoggedRequest) -> LoggedRequest:
    names = piece_hashes(prompt, key)
    return replace(logged, hash_tokens=PIECE_TOKENS if names else 0, prefix_hashes=names)


def piece_hashes(prompt: Sequence[int], key: bytes) -> tuple[int, ...]:
    """64-bit names of a prompt's leading full pieces of 64 tokens; each covers all tokens up to its piece's end.

    Keyed BLAKE2b, chained: who has not the key cannot tell from a name what the tokens were.
    """
    num_pieces = min(len(prompt) // PIECE_TOKENS, MAX_PIECES)
    data = np.array(prompt[: num_pieces * PIECE_TOKENS], dtype="<i4").tobytes()
    names, piece_bytes, previous = [], 4 * PIECE_TOKENS, b""
    for first in range(0, len(data), piece_bytes):
        previous = hashlib.blake2b(previous + data[first : first + piece_bytes], digest_size=8, key=key).digest()
        names.append(int.from_bytes(previous, "big"))
    return tuple(names)
