"""One attempt of a request inside a worker: its tokens, its blocks, and how far its KV is computed.

Owned by the engine thread. Knows no device and no peer.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from twinpool.core.messages import FinishReason, Request
from twinpool.core.sampling import TokenLogprobs
from twinpool.model.batch import SampleRow, ScoreRow
from twinpool.model.block_hash import extend_block_hashes
from twinpool.model.block_pool import BlockPool, RefKind


class Key(NamedTuple):
    """Names one attempt of one request."""

    request_id: str
    epoch: int


@dataclass(slots=True, eq=False)
class Chain:
    """The names of a sequence's leading full blocks, were their KV of this quality (see ``root_hash``)."""

    quality: str
    root: bytes  # what the KV depends on beside the tokens
    hashes: list[bytes]


def _nameless() -> tuple[Chain, ...]:
    return (Chain("", b"", []),)


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far, and the blocks that hold the KV of the first ``num_computed`` of them."""

    request: Request
    gateway_id: str
    arrival_s: float  # this worker's clock
    token_ids: list[int]
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_published: int = 0  # leading blocks offered to the prefix cache
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    chains: tuple[Chain, ...] = field(default_factory=_nameless)  # of each quality it may be given, best first
    rank: int = 0  # of the chain that its blocks go by: the coarsest quality that any of them is of
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # as far as computed, where asked for

    @property
    def key(self) -> Key:
        return Key(self.request.request_id, self.request.epoch)

    @property
    def age_order(self) -> tuple[int, float, str]:
        """First come, first served within a priority; ties by id."""
        return (self.request.priority, self.arrival_s, self.request.request_id)

    @property
    def next_index(self) -> int:
        """Position in the answer of the next token sampled."""
        return len(self.token_ids) - self.request.num_prompt_tokens

    @property
    def remaining_tokens(self) -> int:
        """Tokens whose KV may still be stored; the last token of an answer never is."""
        return self.request.peak_tokens - self.num_computed

    def reusable_blocks(self, block_tokens: int) -> int:
        """Leading blocks whose KV may come from a cache: at least one token is computed, for its logits.

        A prompt that is to be scored needs the logits of every token.
        """
        return 0 if self.request.wants_prompt_logprobs else (len(self.token_ids) - 1) // block_tokens

    def sample_row(self, row: int, eos_token_ids: tuple[int, ...]) -> SampleRow:
        """Ask for this sequence's next token from row ``row`` of a batch."""
        sampling, index = self.request.sampling, self.next_index
        forbidden: tuple[int, ...] = ()
        if index < sampling.min_tokens:
            forbidden = sampling.stop_token_ids + (() if sampling.ignore_eos else eos_token_ids)
        return SampleRow(row, sampling, index, self.request.choice, self.token_ids, forbidden)

    def score_row(self, row: int, num_new: int) -> ScoreRow | None:
        """Ask how probable the prompt's tokens after the next ``num_new`` computed ones are; None: not wanted."""
        num_top = self.request.sampling.prompt_logprobs
        if num_top is None or not self.request.wants_prompt_logprobs:
            return None
        first = self.num_computed + 1
        end = min(first + num_new, self.request.num_prompt_tokens)
        return ScoreRow(row, tuple(self.token_ids[first:end]), num_top) if first < end else None

    def finish_reason(self, eos_token_ids: tuple[int, ...], max_model_len: int) -> FinishReason | None:
        """Whether the last token of ``token_ids`` ends the answer."""
        sampling, last = self.request.sampling, self.token_ids[-1]
        if last in sampling.stop_token_ids or (last in eos_token_ids and not sampling.ignore_eos):
            return FinishReason.STOP
        if self.next_index >= sampling.max_tokens or len(self.token_ids) >= max_model_len:
            return FinishReason.LENGTH
        return None

    def take_cached(self, pool: BlockPool, limit: int, kind: RefKind) -> list[int]:
        """Take a reference on each of the leading blocks that are cached, at most ``limit``: of each the best quality.

        The sequence is of the coarsest of them, until ``coarsen``.
        """
        hashes = [chain.hashes for chain in self.chains]
        ranks = pool.match_best(hashes, limit)
        self.rank = max(ranks, default=0)
        return pool.acquire_prefix([hashes[rank][block] for block, rank in enumerate(ranks)], limit, kind)

    def coarsen(self, quality: str) -> None:
        """From now on KV of this quality is among its blocks: none is published under a better name any more.

        Raises:
            ValueError: it may not be given such KV.
        """
        rank = next((rank for rank, chain in enumerate(self.chains) if chain.quality == quality), None)
        if rank is None:
            raise ValueError(f"request {self.request.request_id} may not be given KV of quality {quality!r}")
        self.rank = max(self.rank, rank)

    def publish_full_blocks(self, pool: BlockPool) -> None:
        """Offer blocks that are full and computed to the prefix cache."""
        num_full = self.num_computed // pool.block_tokens
        if num_full <= self.num_published:
            return
        chain = self.chains[self.rank]
        extend_block_hashes(chain.hashes, self.token_ids, pool.block_tokens, chain.root)
        for block in range(self.num_published, num_full):
            pool.publish(self.block_ids[block], chain.hashes[block])
        self.num_published = num_full


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token on its way to the gateway, with what is known about how long it took."""

    key: Key
    gateway_id: str
    index: int
    token_id: int
    finish: FinishReason | None = None
    queue_s: float | None = None  # with the first token of a prefill
    prefill_s: float | None = None
    cached_tokens: int = 0
    handoff: "Arrival | None" = None  # with the first token after a handoff
    logprobs: TokenLogprobs | None = None  # where asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # with index 0, where asked for


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a handoff cost, measured in durations on each side's own clock."""

    handoff_s: float
    wire_s: float
    exposed_s: float
    kv_bytes: int
