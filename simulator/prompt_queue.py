"""Prompts on their way to a first token in a simulated worker, and computed KV that waits to be sent.

Stands where prefill_worker/service.py stands in a live worker. Decides nothing.
"""

from dataclasses import dataclass, field

import numpy as np

from twinpool.decode_worker.age_table import AgeTable
from twinpool.model.step import StepPlan
from twinpool.prefill_worker import batching
from twinpool.prefill_worker.batching import PrefillView
from twinpool.simulator.attempt import Attempt, Destination
from twinpool.simulator.pool import CountedPool, Holding, Name

REMAINING, NEED, MAY_PARK = range(3)


@dataclass(slots=True, eq=False)
class Prompt:
    """A sequence being prefilled, for this worker (local) or for another."""

    attempt: Attempt
    destination: Destination
    came_s: float
    holding: Holding = field(default_factory=Holding)  # of a local one: its row's
    started_s: float | None = None
    num_computed: int = 0
    cached_tokens: int = 0
    chunk_tokens: int = 0  # of the step under way
    expected_tokens: int = 0  # that were cached when it came; 0 once it has started

    @property
    def waiting_tokens(self) -> int:
        """That will have to be computed, as far as can be told before it starts."""
        return self.remaining_tokens - self.expected_tokens

    @property
    def is_local(self) -> bool:
        return self.destination is Destination.LOCAL

    @property
    def remaining_tokens(self) -> int:
        return self.attempt.num_tokens - self.num_computed


@dataclass(slots=True, eq=False)
class Outgoing:
    """Blocks kept for a send: while computed, parked or on the wire."""

    attempt: Attempt
    holding: Holding
    num_blocks: int
    is_computed: bool = False
    is_granted: bool = False


class PromptQueue:
    """Prompts in order of age, and the blocks of handoffs that are not acknowledged yet."""

    def __init__(self, pool: CountedPool, block_tokens: int, parked_limit_blocks: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._parked_limit_blocks = parked_limit_blocks
        self._prompts = AgeTable[Prompt](3)
        self._by_attempt: dict[Attempt, Prompt] = {}
        self._outgoing: dict[Attempt, Outgoing] = {}
        self.waiting_tokens = 0
        self.parked_blocks = 0  # held by computed KV that no decode worker has granted room for
        self._ungranted_blocks = 0  # of all sends, computed or not, that no decode worker has granted room for
        self.busy_blocks = 0  # held by sends that come to an end by themselves: being computed, or granted

    @property
    def num_waiting(self) -> int:
        return len(self._prompts)

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, token_budget: int, spare_blocks: int) -> StepPlan:
        """Ask the policy for the next step's chunks."""
        columns = self._prompts.columns
        view = PrefillView(
            remaining_tokens=columns[REMAINING],
            need_blocks=columns[NEED],
            may_park=columns[MAY_PARK].astype(np.bool_),
            token_budget=token_budget,
            spare_blocks=spare_blocks,
            parked_blocks=self._ungranted_blocks,
            parked_limit=self._parked_limit_blocks,
        )
        return batching.decide(view, now)

    # --- perform --------------------------------------------------------------------------------------------------

    def submit(self, prompt: Prompt) -> None:
        """Queue a prompt. A local one holds its blocks already."""
        need = 0 if prompt.is_local else self._num_blocks(prompt)
        numbers = (prompt.remaining_tokens, need, int(not prompt.is_local))
        self._prompts.add(prompt, prompt.attempt.age_order, numbers)
        self._by_attempt[prompt.attempt] = prompt
        if prompt.attempt.names and not prompt.is_local:
            prompt.expected_tokens = self._pool.match(self._reusable(prompt)) * prompt.attempt.piece_tokens
        self.waiting_tokens += prompt.waiting_tokens

    def _num_blocks(self, prompt: Prompt) -> int:
        return -(-prompt.attempt.num_tokens // self._block_tokens)

    def prompt(self, row: int) -> Prompt:
        return self._prompts[row]

    def start(self, row: int, now: float) -> Prompt:
        """Give the prompt in ``row`` its blocks, cached pieces first, and note the time."""
        prompt = self._prompts[row]
        prompt.started_s = now
        if not prompt.is_local:
            self._take_blocks(prompt)
            if prompt.destination is Destination.HANDOFF:
                num_blocks = self._num_blocks(prompt)
                self._outgoing[prompt.attempt] = Outgoing(prompt.attempt, prompt.holding, num_blocks)
                self.busy_blocks += num_blocks
                self._ungranted_blocks += num_blocks
        columns = self._prompts.columns
        columns[NEED, row] = 0
        columns[REMAINING, row] = prompt.remaining_tokens
        return prompt

    def _take_blocks(self, prompt: Prompt) -> None:
        attempt, pool = prompt.attempt, self._pool
        cached = pool.take_cached(prompt.holding, self._reusable(prompt)) * attempt.piece_tokens
        pool.take(prompt.holding, self._num_blocks(prompt) - cached // self._block_tokens)
        prompt.num_computed = prompt.cached_tokens = cached
        self.waiting_tokens += prompt.expected_tokens - cached
        prompt.expected_tokens = 0

    @staticmethod
    def _reusable(prompt: Prompt) -> tuple[Name, ...]:
        """Pieces that may come from the cache: at least one token is computed."""
        return prompt.attempt.names[: prompt.attempt.pieces_in(prompt.attempt.num_tokens - 1)]

    def granted(self, attempt: Attempt) -> bool:
        """A decode worker has made room for this handoff. False: it is gone."""
        outgoing = self._outgoing.get(attempt)
        if outgoing is None:
            return False
        if outgoing.is_computed and not outgoing.is_granted:
            self.parked_blocks -= outgoing.num_blocks
            self.busy_blocks += outgoing.num_blocks
        if not outgoing.is_granted:
            self._ungranted_blocks -= outgoing.num_blocks
        outgoing.is_granted = True
        return True

    def ungranted(self, attempt: Attempt) -> None:
        """The handoff lost its target; what is computed of it is parked."""
        outgoing = self._outgoing.get(attempt)
        if outgoing is not None and outgoing.is_granted:
            outgoing.is_granted = False
            self._ungranted_blocks += outgoing.num_blocks
            if outgoing.is_computed:
                self.busy_blocks -= outgoing.num_blocks
                self.parked_blocks += outgoing.num_blocks

    def renew(self, old: Attempt, new: Attempt) -> bool:
        """The handoff goes on under a new epoch, to another target. False: its KV is gone."""
        outgoing = self._outgoing.get(old)
        if outgoing is None:
            return False
        self.ungranted(old)
        del self._outgoing[old]
        outgoing.attempt = new
        self._outgoing[new] = outgoing
        return True

    def youngest_parked(self, excluding: set[Attempt]) -> Attempt | None:
        """The parked handoff to give up first."""
        parked = [
            attempt
            for attempt, outgoing in self._outgoing.items()
            if outgoing.is_computed and not outgoing.is_granted and attempt not in excluding
        ]
        return max(parked, key=lambda attempt: attempt.age_order, default=None)

    def outgoing_blocks(self, attempt: Attempt) -> int:
        """Blocks kept for this send; 0 when there is none."""
        return self._outgoing[attempt].num_blocks if attempt in self._outgoing else 0

    # --- apply ----------------------------------------------------------------------------------------------------

    def advance(self, prompt: Prompt) -> None:
        """Book the chunk that was just computed; its full pieces are cached."""
        attempt, before = prompt.attempt, prompt.num_computed
        prompt.num_computed += prompt.chunk_tokens
        self.waiting_tokens -= prompt.chunk_tokens
        prompt.chunk_tokens = 0
        if attempt.names:
            self._pool.publish(
                prompt.holding, attempt.names[attempt.pieces_in(before) : attempt.pieces_in(prompt.num_computed)]
            )
        if prompt.remaining_tokens:
            self._prompts.columns[REMAINING, self._prompts.index(prompt)] = prompt.remaining_tokens

    def finish(self, prompt: Prompt) -> None:
        """The first token is there: the prompt leaves the queue; unless local, its blocks only wait for the send."""
        self._leave(prompt)
        outgoing = self._outgoing.get(prompt.attempt)
        if outgoing is not None:
            outgoing.is_computed = True
            if not outgoing.is_granted:
                self.busy_blocks -= outgoing.num_blocks
                self.parked_blocks += outgoing.num_blocks
        elif not prompt.is_local:
            self._pool.release(prompt.holding)

    def release(self, attempt: Attempt) -> None:
        """The handoff needs its blocks no more: they are cached, or free. Idempotent."""
        outgoing = self._outgoing.pop(attempt, None)
        if outgoing is None:
            return
        if outgoing.is_granted or not outgoing.is_computed:
            self.busy_blocks -= outgoing.num_blocks
        else:
            self.parked_blocks -= outgoing.num_blocks
        if not outgoing.is_granted:
            self._ungranted_blocks -= outgoing.num_blocks
        self._pool.release(outgoing.holding)

    def cancel(self, attempt: Attempt) -> None:
        """Forget a prompt that is not computed yet, and what is kept for its send. Idempotent."""
        prompt = self._by_attempt.get(attempt)
        if prompt is not None:
            self.waiting_tokens -= prompt.waiting_tokens
            self._leave(prompt)
            if not prompt.is_local and attempt not in self._outgoing:
                self._pool.release(prompt.holding)
        self.release(attempt)

    def _leave(self, prompt: Prompt) -> None:
        self._prompts.remove(prompt)
        del self._by_attempt[prompt.attempt]

    def find(self, attempt: Attempt) -> Prompt | None:
        """Its prompt, if it waits or is being computed."""
        return self._by_attempt.get(attempt)

    def attempts(self) -> list[Attempt]:
        """All that wait, are being computed, or are kept for a send."""
        return list(dict.fromkeys([*self._by_attempt, *self._outgoing]))

    def holdings(self) -> list[Holding]:
        """For checks: each once."""
        held = {id(prompt.holding): prompt.holding for prompt in self._prompts if not prompt.is_local}
        held |= {id(outgoing.holding): outgoing.holding for outgoing in self._outgoing.values()}
        return list(held.values())

    def check(self) -> None:
        """Recompute what is kept for speed; AssertionError if it differs."""
        sends = self._outgoing.values()
        parked = sum(send.num_blocks for send in sends if send.is_computed and not send.is_granted)
        assert self.waiting_tokens == sum(prompt.waiting_tokens for prompt in self._prompts)
        assert self.parked_blocks == parked
        assert self.busy_blocks == sum(send.num_blocks for send in sends) - parked
        assert self._ungranted_blocks == sum(send.num_blocks for send in sends if not send.is_granted)
