"""What placing one request on each worker is predicted to cost, for the request and for those already there.

Knows latency forms and views; decides nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel
from twinpool.router.views import ClusterView


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Predictions for one request on each of N workers, in seconds."""

    ttft_s: NDArray[np.float64]  # [N] arrival to first token, if prefilled there
    prefill_cost_s: NDArray[np.float64]  # [N] ttft_s, and what that prefill takes from all sequences decoding there
    tpot_s: NDArray[np.float64]  # [N] mean gap, if it decodes there
    exposed_s: float  # of the transfer, after the prefill, if prefilled and decoded on different workers
    exposed_tpot_s: float  # the same as a share of the mean gap


def price(demand: Demand, view: ClusterView, latency: LatencyModel) -> Prices:
    """Predict TTFT, TPOT and the damage to others, on every worker.

    TTFT: the prompts waiting there and this one, and a decode step beside each chunk where sequences decode. The first
    token leaves the prefill worker, so the exposed part of the transfer delays the second token: it counts for TPOT.
    TPOT: a step after this request and all reservations joined, and its share of the prefills waiting there.
    """
    queue_s, own_s, waiting_s = _prefill_times(demand, view, latency)
    running = view.running.astype(np.float64)
    chunks = np.ceil((view.waiting_prefill_tokens + demand.num_tokens) / latency.chunk_tokens)
    step_s = latency.step.seconds(view.context_tokens.astype(np.float64), running)
    ttft_s = demand.age_s + queue_s + np.where(running > 0, chunks * step_s, 0.0)

    joined_tokens = view.context_tokens + view.reserved_blocks * view.block_tokens + demand.num_tokens
    joined_batch = running + view.reservations + 1
    later_tokens = max(1, demand.max_new_tokens - 1)
    tpot_s = latency.step.seconds(joined_tokens.astype(np.float64), joined_batch) + waiting_s / later_tokens

    exposed_s = _exposed_s(demand.num_tokens, own_s, latency)
    return Prices(ttft_s, ttft_s + running * own_s, tpot_s, exposed_s, exposed_s / later_tokens)


def _prefill_times(
    demand: Demand, view: ClusterView, latency: LatencyModel
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Time for (the waiting prompts and this one [N], this one alone, the waiting ones alone [N])."""
    own, own_squares = float(demand.num_tokens), float(demand.num_tokens) ** 2
    waiting = view.waiting_prefill_tokens.astype(np.float64)
    squares = waiting**2 / np.maximum(1, view.waiting_prefills)  # as if all of one length
    alone = np.where(waiting > 0, latency.prefill.seconds(waiting, squares), 0.0)
    return (
        latency.prefill.seconds(waiting + own, squares + own_squares),
        latency.prefill.seconds(own, own_squares),
        alone,
    )


def _exposed_s(num_tokens: int, prefill_s: float, latency: LatencyModel) -> float:
    """The part of the transfer that computing cannot hide: what the link falls behind by, at least the last chunk."""
    wire_s = latency.link.seconds(float(num_tokens * latency.kv_token_bytes))
    last_s = latency.link.seconds(float(min(num_tokens, latency.chunk_tokens) * latency.kv_token_bytes))
    return max(last_s, wire_s - prefill_s)


def violation(predicted_s: NDArray[np.float64] | np.float64, goal_s: float) -> NDArray[np.float64]:
    """By how much of the goal a prediction misses it: 0 when met, 1 when it takes twice as long."""
    return np.maximum(0.0, predicted_s / goal_s - 1.0)
