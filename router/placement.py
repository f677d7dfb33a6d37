"""Where one request goes: on which worker it is prefilled, and on which it decodes.

Pure. Knows views and predictions; keeps no state, sends nothing, never waits.
"""

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from twinpool.router.candidates import Candidates, Workers, find_candidates
from twinpool.router.demand import Demand
from twinpool.router.pricing import Prices, price, violation
from twinpool.router.route import Hold, PlacementSettings, Policy, Reject, Route
from twinpool.router.views import ClusterView


def place(demand: Demand, view: ClusterView, settings: PlacementSettings, turn: int = 0) -> Route | Hold | Reject:
    """Choose workers for one request, or say which rule stands in the way.

    First comes what is possible at all: live workers, blocks for the whole answer above what is forecast and promised
    (so that our orders never make a worker preempt), a prefill queue within bounds. The policy then orders the rest.

    Args:
        turn: how many requests were routed before; what `round_robin` counts by.
    """
    found = find_candidates(demand, view, settings)
    if not isinstance(found, Candidates):
        return found
    match settings.policy:
        case Policy.ROUND_ROBIN:
            return _round_robin(view, found, turn)
        case Policy.LEAST_LOADED:
            return _least_loaded(view, found)
        case Policy.SLO:
            return _slo(demand, view, found, settings)
        case _:
            assert_never(settings.policy)


def _round_robin(view: ClusterView, found: Candidates, turn: int) -> Route:
    """Each list in turn, whatever the load."""
    turned = [np.roll(workers, -turn) for workers in (found.prefill, found.decode, found.local)]
    return _pair_or_local(view, Candidates(*turned), f"round robin, turn {turn}")


def _least_loaded(view: ClusterView, found: Candidates) -> Route:
    """Join the shortest queue: prefill by tokens that wait, decode by blocks spoken for (Splitwise's cluster-level
    scheduler, ISCA'24, section IV-A); local plans by the sum of both, in tokens."""
    waiting = view.waiting_prefill_tokens
    held = view.peak_blocks + view.reserved_blocks
    ordered = Candidates(
        _ordered(found.prefill, waiting),
        _ordered(found.decode, held),
        _ordered(found.local, waiting + held * view.block_tokens),
    )
    return _pair_or_local(view, ordered, "least loaded")


def _pair_or_local(view: ClusterView, ordered: Candidates, why: str) -> Route:
    pair = _first_pair(ordered)
    if pair is not None:
        return _route(view, *pair, why)
    if len(ordered.local):
        return _route(view, ordered.local[0], ordered.local[0], f"{why}, local")
    return _route(view, ordered.prefill[0], None, why)


@dataclass(frozen=True, slots=True)
class _Plan:
    prefill: np.intp
    decode: np.intp | None
    misses: float  # by how much of its goals, summed; 0: both met
    cost_s: float  # seconds that this request and those already there wait because of the plan
    why: str


def _slo(demand: Demand, view: ClusterView, found: Candidates, settings: PlacementSettings) -> Route:
    """Of the plans that meet both goals the one that costs the least time, or else the one that misses by the least.

    Prefill goes where the first token comes soonest, counting what the running sequences there lose. Decode goes to
    the fullest worker that still keeps its pace with one more sequence, so that emptier ones stay free for tight goals.
    A local plan saves the transfer and disturbs the sequences around it. Ties go to the pair, then to the smaller id.
    """
    prices = price(demand, view, settings.latency, settings.latencies)
    late = violation(prices.ttft_s, demand.goal.ttft_s)
    slow = violation(prices.tpot_s, demand.goal.tpot_s)
    prefill = _ordered(found.prefill, prices.prefill_cost_s, first_by=late)
    exposed_tpot_s = prices.exposed_tpot_s[prefill[0]] if len(prefill) else 0.0
    slow_with_handoff = violation(prices.tpot_s + exposed_tpot_s, demand.goal.tpot_s)
    spare = view.total_blocks - view.peak_blocks - view.reserved_blocks
    ordered = Candidates(
        prefill,
        _ordered(found.decode, spare, first_by=slow_with_handoff),
        _ordered(found.local, prices.prefill_cost_s, first_by=late + slow),
    )
    plans = []
    pair = _first_pair(ordered)
    if pair is not None:
        plans.append(_plan_pair(demand, prices, *pair))
    if len(ordered.local):
        plans.append(_plan_alone(demand, prices, ordered.local[0], decodes=True))
    if not plans:
        plans.append(_plan_alone(demand, prices, ordered.prefill[0], decodes=False))
    best = min(plans, key=lambda plan: (plan.misses, plan.cost_s))
    return _route(view, best.prefill, best.decode, best.why)


def _plan_pair(demand: Demand, prices: Prices, prefill: np.intp, decode: np.intp) -> _Plan:
    ttft_s, tpot_s = prices.ttft_s[prefill], prices.tpot_s[decode] + prices.exposed_tpot_s[prefill]
    cost_s = prices.prefill_cost_s[prefill] + prices.exposed_s[prefill]
    return _Plan(prefill, decode, *_judged(demand, ttft_s, tpot_s, cost_s))


def _plan_alone(demand: Demand, prices: Prices, worker: np.intp, *, decodes: bool) -> _Plan:
    tpot_s = prices.tpot_s[worker] if decodes else np.float64(0)
    judged = _judged(demand, prices.ttft_s[worker], tpot_s, prices.prefill_cost_s[worker])
    return _Plan(worker, worker if decodes else None, *judged)


def _judged(demand: Demand, ttft_s: np.float64, tpot_s: np.float64, cost_s: np.float64) -> tuple[float, float, str]:
    """(misses, cost, in words)."""
    late, slow = float(violation(ttft_s, demand.goal.ttft_s)), float(violation(tpot_s, demand.goal.tpot_s))
    met = " and ".join(name for name, missed in (("ttft", late), ("tpot", slow)) if missed)
    verdict = f"misses {met} by the least" if met else "meets its goals for the least time"
    return late + slow, float(cost_s), f"{verdict}: ttft {ttft_s:.3g} s, tpot {tpot_s:.3g} s, cost {cost_s:.3g} s"


def _route(view: ClusterView, prefill: np.intp, decode: np.intp | None, why: str) -> Route:
    return Route(view.worker_ids[prefill], None if decode is None else view.worker_ids[decode], why)


def _ordered(workers: Workers, by: NDArray[Any], first_by: NDArray[np.float64] | None = None) -> Workers:
    """``workers`` by ``first_by``, then ``by``, then id."""
    keys = (by[workers],) if first_by is None else (by[workers], first_by[workers])
    return workers[np.lexsort(keys)]


def _first_pair(ordered: Candidates) -> tuple[np.intp, np.intp] | None:
    """The best decode worker with the best other prefill worker; two of each suffice, as they can collide once only."""
    for decode in ordered.decode[:2]:
        for prefill in ordered.prefill[:2]:
            if prefill != decode:
                return prefill, decode
    return None
