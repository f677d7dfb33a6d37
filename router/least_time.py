"""The least time in which a request could have its first token, on an idle worker of the fastest kind there is.

Knows no queue: what waits only adds to it.
"""

import math
from collections.abc import Iterable, Mapping

from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel

SURE_SHARE = 0.8  # of a prediction, which may be too long


def least_ttft_s(
    demand: Demand, kinds: Iterable[str], latencies: Mapping[str, LatencyModel], *, knows_caches: bool
) -> float:
    """Seconds that its prefill takes at least; 0 where nothing is known that would be sure enough to refuse it for.

    Args:
        kinds: of all workers.
        latencies: what is known of kinds. One that is missing may be as fast as it likes.
        knows_caches: ``demand.cached_tokens`` says what workers have of the prompt; otherwise they may have all of it.
    """
    kinds = tuple(kinds)
    if demand.parked_on is not None or not kinds or any(kind not in latencies for kind in kinds):
        return 0.0
    cached = demand.cached_tokens
    num_cached = 0 if cached is None or not len(cached) else int(cached.max())
    if not knows_caches:
        num_cached = demand.num_tokens - 1
    return SURE_SHARE * min(_prefill_s(num_cached, demand.num_tokens, latencies[kind]) for kind in kinds)


def _prefill_s(num_cached: int, num_tokens: int, latency: LatencyModel) -> float:
    """Of the tokens behind those cached, in chunks as if they were alike."""
    tokens, squares = float(num_tokens - num_cached), float(num_tokens) ** 2 - float(num_cached) ** 2
    num_steps = max(1, math.ceil(tokens / latency.chunk_tokens))
    return num_steps * latency.steps.seconds(tokens / num_steps, squares / num_steps, 0.0, 0.0)
