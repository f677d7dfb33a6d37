"""Prompts on their way to a first token, and computed KV that waits to be sent.

Owned by the engine thread. Decides nothing (see batching.py) and sends nothing: it keeps the queue and the references
to blocks, and says what happened.
"""

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from twinpool.core.messages import FinishReason
from twinpool.core.sampling import TokenLogprobs
from twinpool.model.block_pool import BlockPool, RefKind
from twinpool.model.sequence import Key, Sequence, Token
from twinpool.model.step import StepPlan
from twinpool.prefill_worker import batching
from twinpool.prefill_worker.batching import PrefillView


@dataclass(slots=True, eq=False)
class Prompt:
    """A sequence being prefilled, for this worker (local) or for another."""

    sequence: Sequence
    is_local: bool
    started_s: float | None = None
    chunk_tokens: int = 0  # of the step under way
    expected_tokens: int = 0  # that were cached when it came; 0 once it has started

    @property
    def waiting_tokens(self) -> int:
        """That will have to be computed, as far as can be told before it starts."""
        return self.remaining_tokens - self.expected_tokens

    @property
    def remaining_tokens(self) -> int:
        return len(self.sequence.token_ids) - self.sequence.num_computed

    @property
    def holds_blocks(self) -> bool:
        return self.is_local or self.started_s is not None

    @property
    def is_last_chunk(self) -> bool:
        return self.chunk_tokens == self.remaining_tokens


@dataclass(slots=True, eq=False)
class Outgoing:
    """Blocks kept for a send: while computed, parked or on the wire."""

    sequence: Sequence
    block_ids: list[int]
    is_computed: bool = False
    is_granted: bool = False


class PrefillService:
    """Queue of prompts in order of age, and the blocks of handoffs that are not acknowledged yet."""

    def __init__(self, pool: BlockPool, *, parked_limit_blocks: int) -> None:
        self._pool = pool
        self._parked_limit_blocks = parked_limit_blocks
        self._prompts: list[Prompt] = []
        self._outgoing: dict[Key, Outgoing] = {}

    # --- what the engine sees -------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._prompts)

    @property
    def waiting_tokens(self) -> int:
        return sum(prompt.waiting_tokens for prompt in self._prompts)

    @property
    def parked_blocks(self) -> int:
        """Held by computed KV that no decode worker has granted room for."""
        return sum(len(o.block_ids) for o in self._outgoing.values() if o.is_computed and not o.is_granted)

    @property
    def excess_parked_blocks(self) -> int:
        """Parked beyond what may be: by handoffs that were granted and lost their targets."""
        return max(0, self.parked_blocks - self._parked_limit_blocks)

    @property
    def busy_blocks(self) -> int:
        """Held by sends that come to an end by themselves: still being computed, or granted."""
        return sum(len(o.block_ids) for o in self._outgoing.values() if o.is_granted or not o.is_computed)

    @property
    def is_idle(self) -> bool:
        return not self._prompts and not self._outgoing

    def youngest_parked(self, excluding: Collection[Key]) -> Key | None:
        """The parked handoff to give up first."""
        parked = [
            o.sequence
            for key, o in self._outgoing.items()
            if o.is_computed and not o.is_granted and key not in excluding
        ]
        return max(parked, key=lambda sequence: sequence.age_order).key if parked else None

    def outgoing_blocks(self, key: Key) -> int:
        """Blocks kept for this send; 0 when there is none."""
        return len(self._outgoing[key].block_ids) if key in self._outgoing else 0

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, now: float, *, token_budget: int, spare_blocks: int) -> StepPlan:
        """Ask the policy for this step's chunks."""
        return batching.decide(self._view(token_budget, spare_blocks), now)

    def _view(self, token_budget: int, spare_blocks: int) -> PrefillView:
        prompts = self._prompts
        ungranted = sum(len(o.block_ids) for o in self._outgoing.values() if not o.is_granted)
        needs = [0 if p.holds_blocks else self._num_blocks(p) for p in prompts]
        return PrefillView(
            remaining_tokens=np.array([p.remaining_tokens for p in prompts], dtype=np.int64),
            need_blocks=np.array(needs, dtype=np.int64),
            may_park=np.array([not p.is_local for p in prompts], dtype=np.bool_),
            token_budget=token_budget,
            spare_blocks=spare_blocks,
            parked_blocks=ungranted,
            parked_limit=self._parked_limit_blocks,
        )

    def _num_blocks(self, prompt: Prompt) -> int:
        return -(-len(prompt.sequence.token_ids) // self._pool.block_tokens)

    # --- perform --------------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Queue a prompt whose KV goes to another worker, or whose only token is the first."""
        hashes = [chain.hashes for chain in sequence.chains]
        num_cached = len(self._pool.match_best(hashes, sequence.reusable_blocks(self._pool.block_tokens)))
        prompt = Prompt(sequence, is_local=False, expected_tokens=num_cached * self._pool.block_tokens)
        insort(self._prompts, prompt, key=lambda p: p.sequence.age_order)

    def submit_local(self, sequence: Sequence) -> None:
        """Queue a prompt that this worker will decode; it holds its blocks already (see the decode service)."""
        insort(self._prompts, Prompt(sequence, is_local=True), key=lambda p: p.sequence.age_order)

    def start(self, row: int, now: float, *, for_handoff: bool) -> Prompt:
        """Give the prompt in ``row`` its blocks, cached ones first, and note the time.

        A prompt that will be handed off also holds them for the send, from now until ``release``.
        """
        prompt = self._prompts[row]
        sequence = prompt.sequence
        if not prompt.is_local:
            self._take_blocks(sequence)
            if for_handoff:
                self._pool.hold(sequence.block_ids, RefKind.TRANSFER)
                self._outgoing[sequence.key] = Outgoing(sequence, list(sequence.block_ids))
        prompt.started_s = now
        prompt.expected_tokens = 0
        return prompt

    def _take_blocks(self, sequence: Sequence) -> None:
        pool, num_tokens = self._pool, len(sequence.token_ids)
        reusable = sequence.reusable_blocks(pool.block_tokens)
        sequence.block_ids = sequence.take_cached(pool, reusable, RefKind.SEQUENCE)
        sequence.num_published = len(sequence.block_ids)
        sequence.num_computed = sequence.cached_tokens = len(sequence.block_ids) * pool.block_tokens
        missing = -(-num_tokens // pool.block_tokens) - len(sequence.block_ids)
        sequence.block_ids += pool.allocate(missing, RefKind.SEQUENCE)

    def prompt(self, row: int) -> Prompt:
        return self._prompts[row]

    def granted(self, key: Key) -> None:
        """A decode worker has made room for this handoff."""
        if key in self._outgoing:
            self._outgoing[key].is_granted = True

    def ungranted(self, key: Key) -> None:
        """The handoff lost its target; what is computed of it is parked."""
        if key in self._outgoing:
            self._outgoing[key].is_granted = False

    def renew(self, key: Key, epoch: int) -> None:
        """The handoff goes on under a new epoch, to another target."""
        outgoing = self._outgoing.pop(key, None)
        if outgoing is None:
            return
        sequence = outgoing.sequence
        sequence.request = replace(sequence.request, epoch=epoch)
        outgoing.is_granted = False
        self._outgoing[sequence.key] = outgoing

    # --- apply ----------------------------------------------------------------------------------------------------

    def advance(self, prompt: Prompt) -> None:
        """Book the chunk that was just computed, and offer its full blocks to the prefix cache."""
        sequence = prompt.sequence
        sequence.num_computed += prompt.chunk_tokens
        prompt.chunk_tokens = 0
        sequence.publish_full_blocks(self._pool)

    def finish(
        self,
        prompt: Prompt,
        token_id: int,
        finish: FinishReason | None,
        now: float,
        logprobs: TokenLogprobs | None = None,
    ) -> Token:
        """Book the first token: the prompt leaves the queue; unless local, its blocks only wait for the send."""
        sequence = prompt.sequence
        assert prompt.started_s is not None
        token = Token(
            sequence.key,
            sequence.gateway_id,
            sequence.next_index - 1,
            token_id,
            finish,
            queue_s=prompt.started_s - sequence.arrival_s,
            prefill_s=now - prompt.started_s,
            cached_tokens=sequence.cached_tokens,
            logprobs=logprobs,
            prompt_logprobs=tuple(sequence.prompt_logprobs),
        )
        self._prompts.remove(prompt)
        if not prompt.is_local:
            self._pool.release(sequence.block_ids, RefKind.SEQUENCE)
            if sequence.key in self._outgoing:
                self._outgoing[sequence.key].is_computed = True
        return token

    def release(self, key: Key) -> None:
        """The handoff needs its blocks no more: they become prefix cache, or free. Idempotent."""
        outgoing = self._outgoing.pop(key, None)
        if outgoing is not None:
            self._pool.release(outgoing.block_ids, RefKind.TRANSFER)

    def cancel(self, key: Key) -> bool:
        """Forget a prompt that is not computed yet. Blocks kept for a send stay until ``release``. Idempotent."""
        for prompt in self._prompts:
            if prompt.sequence.key == key:
                self._prompts.remove(prompt)
                if prompt.started_s is not None and not prompt.is_local:
                    self._pool.release(prompt.sequence.block_ids, RefKind.SEQUENCE)
                return True
        return False
