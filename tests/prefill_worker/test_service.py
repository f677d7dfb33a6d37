"""What a queue of prompts says it has to compute: not what is cached when a prompt comes."""

import pytest

from twinpool.core.messages import Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.model.block_hash import block_hashes
from twinpool.model.block_pool import BlockPool, RefKind
from twinpool.model.sequence import Chain, Sequence
from twinpool.prefill_worker.service import PrefillService

BLOCK_TOKENS = 8
PROMPT = tuple(range(3 * BLOCK_TOKENS + 5))


def sequence_of(name: str, **sampling: int) -> Sequence:
    params = SamplingParams(max_tokens=4, seed=0, **sampling)  # type: ignore[arg-type]
    request = Request(name, 1, PROMPT, len(PROMPT), params, Goal(1.0, 1.0))
    chain = Chain("raw", b"", block_hashes(PROMPT, BLOCK_TOKENS, b""))
    return Sequence(request, "g", 0.0, list(PROMPT), chains=(chain,))


def service_with(num_cached: int) -> PrefillService:
    pool = BlockPool(20, BLOCK_TOKENS, prefix_cache=True)
    block_ids = pool.allocate(num_cached, RefKind.SEQUENCE)
    for block_id, name in zip(block_ids, block_hashes(PROMPT, BLOCK_TOKENS, b""), strict=False):
        pool.publish(block_id, name)
    pool.release(block_ids, RefKind.SEQUENCE)
    return PrefillService(pool, parked_limit_blocks=10)


@pytest.mark.parametrize("num_cached", [0, 2, 3])
def test_cached_blocks_do_not_wait_to_be_computed(num_cached: int) -> None:
    service = service_with(num_cached)
    left = len(PROMPT) - num_cached * BLOCK_TOKENS
    service.submit(sequence_of("a"))
    service.submit(sequence_of("b"))
    assert service.waiting_tokens == 2 * left
    service.start(0, 1.0, for_handoff=False)
    assert service.waiting_tokens == 2 * left
    assert service.prompt(0).remaining_tokens == left


def test_a_prompt_that_is_scored_waits_whole() -> None:
    service = service_with(3)
    service.submit(sequence_of("a", prompt_logprobs=0))
    assert service.waiting_tokens == len(PROMPT)
