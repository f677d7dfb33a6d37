"""What placing one request on each worker is predicted to cost, for the request and for those already there.

Knows latency forms and views; decides nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from twinpool.router.demand import Demand
from twinpool.router.estimate import LatencyModel
from twinpool.router.views import ClusterView

Seconds = NDArray[np.float64]
Counts = NDArray[np.int64]
NO_KINDS: Mapping[str, LatencyModel] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Predictions for one request on each of N workers, in seconds."""

    ttft_s: Seconds  # [N] arrival to first token, if prefilled there
    prefill_cost_s: Seconds  # [N] ttft_s, and what that prefill takes from all sequences decoding there
    tpot_s: Seconds  # [N] mean gap, if it decodes there
    tpot_before_s: Seconds  # [N] mean gap there without it
    others: Seconds  # [N] sequences that decode there, or are to
    stall_s: Seconds  # [N] what its prefill takes from each of those, if prefilled there
    exposed_s: Seconds  # [N] of the transfer, after the prefill, if prefilled there and decoded elsewhere
    exposed_tpot_s: Seconds  # [N] the same as a share of the mean gap


@dataclass(frozen=True, slots=True, eq=False)
class _Loads:
    """The columns of a view that prices depend on, of workers [K] of one kind."""

    waiting_tokens: Counts
    waiting_prefills: Counts
    context_tokens: Counts
    running: Counts
    reserved_tokens: Counts
    reservations: Counts


def price(
    demand: Demand, view: ClusterView, latency: LatencyModel, latencies: Mapping[str, LatencyModel] = NO_KINDS
) -> Prices:
    """Predict TTFT, TPOT and the damage to others, on every worker.

    TTFT: the steps of the prompts waiting there and of what this one has not cached there, with the sequences that
    decode beside them. The first token leaves the prefill worker, so the exposed part of the transfer delays the second
    token: it counts for TPOT; all KV is sent, whatever was cached.
    TPOT: a step after this request and all reservations joined, and its share of the prefills waiting there.

    Args:
        latency: of workers whose kind is not in ``latencies``.
        latencies: by kind.
    """
    models = [latencies.get(kind, latency) for kind in view.kinds]
    if all(model is models[0] for model in models):
        return Prices(*_price_kind(demand, view, slice(None), models[0] if models else latency))
    found = np.empty((8, len(view.worker_ids)), np.float64)
    for index, model in enumerate(models):
        of_kind = np.flatnonzero(view.kind == index)
        found[:, of_kind] = _price_kind(demand, view, of_kind, model)
    return Prices(*found)


@dataclass(frozen=True, slots=True, eq=False)
class _Own:
    """What this request's prefill computes: alike on all workers, or [K] where they have cached different parts."""

    tokens: float | Seconds
    squares: float | Seconds
    seconds: float | Seconds  # of its steps, if nothing were beside them


def _own(demand: Demand, workers: slice | NDArray[np.intp], latency: LatencyModel) -> _Own:
    num_tokens = float(demand.num_tokens)
    squares = num_tokens**2
    if demand.cached_tokens is None:
        num_steps = max(1, math.ceil(num_tokens / latency.chunk_tokens))
        step_s = latency.steps.seconds(num_tokens / num_steps, squares / num_steps, 0.0, 0.0)
        return _Own(num_tokens, squares, num_steps * step_s)
    cached = demand.cached_tokens[workers].astype(np.float64)
    tokens, new_squares, nothing = num_tokens - cached, squares - cached**2, np.zeros_like(cached)
    steps = np.maximum(1, np.ceil(tokens / latency.chunk_tokens))
    return _Own(
        tokens, new_squares, steps * latency.steps.seconds(tokens / steps, new_squares / steps, nothing, nothing)
    )


def _loads(view: ClusterView, workers: slice | NDArray[np.intp]) -> _Loads:
    return _Loads(
        view.waiting_prefill_tokens[workers],
        view.waiting_prefills[workers],
        view.context_tokens[workers],
        view.running[workers],
        view.reserved_blocks[workers] * view.block_tokens[workers],
        view.reservations[workers],
    )


def _price_kind(
    demand: Demand, view: ClusterView, workers: slice | NDArray[np.intp], latency: LatencyModel
) -> tuple[Seconds, ...]:
    """The fields of `Prices` for workers of one kind."""
    loads, own = _loads(view, workers), _own(demand, workers, latency)
    queue_s, waiting_s, step_s, step_before_s = _queue_times(own, demand.num_tokens, loads, latency)
    ttft_s = demand.age_s + queue_s
    later_tokens = max(1, demand.max_new_tokens - 1)
    stall_s, exposed_s = np.empty_like(ttft_s), np.empty_like(ttft_s)
    stall_s[:] = own.seconds
    exposed_s[:] = _exposed_s(demand.num_tokens, own.seconds, latency)
    return (
        ttft_s,
        ttft_s + loads.running * own.seconds,
        step_s + waiting_s / later_tokens,
        step_before_s + waiting_s / later_tokens,
        (loads.running + loads.reservations).astype(np.float64),
        stall_s,
        exposed_s,
        exposed_s / later_tokens,
    )


def _queue_times(own: _Own, num_tokens: int, loads: _Loads, latency: LatencyModel) -> Seconds:
    """[4, K]: of the steps that prefill what waits and this request, beside what decodes there; of the waiting prompts'
    steps alone; of one step that decodes all who will have joined; and of one without this request.

    Chunks are priced as if they were alike, which is exact where the form is linear, and waiting prompts as if of one
    length. All is asked of the form in one go, as numpy's price is by the call.
    """
    work = np.zeros((4, 4, len(loads.running)))  # what the form takes, of each of the four
    work[0, :2] = loads.waiting_tokens
    work[1, :2] = loads.waiting_tokens**2 / np.maximum(1, loads.waiting_prefills)
    work[2, 0] = loads.context_tokens
    work[3, 0] = loads.running
    work[0, 0] += own.tokens
    work[1, 0] += own.squares
    work[2, 3] = loads.context_tokens + loads.reserved_tokens
    work[3, 3] = loads.running + loads.reservations
    work[2, 2], work[3, 2] = work[2, 3] + num_tokens, work[3, 3] + 1
    num_steps = np.maximum(1.0, np.ceil(work[0, :2] / latency.chunk_tokens))
    work[:2, :2] /= num_steps
    times_s: Seconds = latency.steps.seconds(*work)
    times_s[:2] *= num_steps
    return times_s


def _exposed_s(num_tokens: int, prefill_s: float | Seconds, latency: LatencyModel) -> float | Seconds:
    """The part of the transfer that computing cannot hide: what the link falls behind by, at least the last chunk."""
    wire_s = latency.link.seconds(float(num_tokens * latency.kv_token_bytes))
    last_s = latency.link.seconds(float(min(num_tokens, latency.chunk_tokens) * latency.kv_token_bytes))
    if isinstance(prefill_s, np.ndarray):
        return np.maximum(last_s, wire_s - prefill_s)
    return max(last_s, wire_s - prefill_s)


def violation(predicted_s: Seconds | np.float64, goal_s: float) -> Seconds:
    """By how much of the goal a prediction misses it: 0 when met, 1 when it takes twice as long."""
    return np.maximum(0.0, predicted_s / goal_s - 1.0)
