"""Where one request goes: on which worker it is prefilled, and on which it decodes.

Pure. Knows views and predictions; keeps no state, sends nothing, never waits.
"""

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from twinpool.router.candidates import Candidates, Workers, find_candidates
from twinpool.router.demand import Demand
from twinpool.router.prefix_aware import prefix_cost
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
        case Policy.PREFIX_AWARE:
            by_cost = _Order(prefix_cost(demand, view, settings.overlap_weight))
            return _pair_or_local(view, found, (by_cost, by_cost, by_cost), "prefix aware")
        case Policy.SLO:
            return _slo(demand, view, found, settings)
        case _:
            assert_never(settings.policy)


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """Prefers workers by ``first_by``, then ``by``, the smaller the better; then by id. Arrays [N] over a view."""

    by: NDArray[Any]
    first_by: NDArray[np.float64] | None = None

    def best(self, workers: Workers) -> np.intp:
        """The first of these, of which there are some."""
        if self.first_by is not None:
            firsts = self.first_by[workers]
            workers = workers[firsts == firsts[firsts.argmin()]]
        return workers[self.by[workers].argmin()]


def _best_pair(found: Candidates, prefill_by: _Order, decode_by: _Order) -> tuple[np.intp, np.intp] | None:
    """The best decode worker with the best other prefill worker. None: there are no two different ones."""
    if not len(found.prefill) or not len(found.decode):
        return None
    prefill, decode = prefill_by.best(found.prefill), decode_by.best(found.decode)
    if prefill != decode:
        return prefill, decode
    if len(found.prefill) > 1:
        return prefill_by.best(found.prefill[found.prefill != decode]), decode
    if len(found.decode) > 1:
        return prefill, decode_by.best(found.decode[found.decode != prefill])
    return None


def _round_robin(view: ClusterView, found: Candidates, turn: int) -> Route:
    """Each list in turn, whatever the load."""
    prefill, decode, local = (_turned(workers, view, turn) for workers in (found.prefill, found.decode, found.local))
    return _pair_or_local(view, found, (prefill, decode, local), f"round robin, turn {turn}")


def _turned(workers: Workers, view: ClusterView, turn: int) -> _Order:
    """The order in which they come when a turn takes one from the front to the end."""
    ranks = np.zeros(len(view.worker_ids), np.int64)
    ranks[np.roll(workers, -turn)] = np.arange(len(workers))
    return _Order(ranks)


def _least_loaded(view: ClusterView, found: Candidates) -> Route:
    """Join the shortest queue: prefill by tokens that wait, decode by blocks spoken for (Splitwise's cluster-level
    scheduler, ISCA'24, section IV-A); local plans by the sum of both, in tokens."""
    waiting = view.waiting_prefill_tokens
    held = view.peak_blocks + view.reserved_blocks
    orders = (_Order(waiting), _Order(held), _Order(waiting + held * view.block_tokens))
    return _pair_or_local(view, found, orders, "least loaded")


def _pair_or_local(view: ClusterView, found: Candidates, orders: tuple[_Order, _Order, _Order], why: str) -> Route:
    """A pair where there is one. ``orders`` are of the three fields of `Candidates`."""
    prefill, decode, local = orders
    pair = _best_pair(found, prefill, decode)
    if pair is not None:
        return _route(view, *pair, why)
    if len(found.local):
        worker = local.best(found.local)
        return _route(view, worker, worker, f"{why}, local")
    return _route(view, prefill.best(found.prefill), None, why)


@dataclass(frozen=True, slots=True)
class _Plan:
    prefill: np.intp
    decode: np.intp | None
    ttft_s: float
    tpot_s: float
    late: float  # by how much of each goal it misses; 0: met
    slow: float
    cost_s: float  # seconds that this request and those already there wait because of the plan

    def describe(self) -> str:
        met = " and ".join(name for name, missed in (("ttft", self.late), ("tpot", self.slow)) if missed)
        verdict = f"misses {met} by the least" if met else "meets its goals for the least time"
        return f"{verdict}: ttft {self.ttft_s:.3g} s, tpot {self.tpot_s:.3g} s, cost {self.cost_s:.3g} s"


def _slo(demand: Demand, view: ClusterView, found: Candidates, settings: PlacementSettings) -> Route:
    """Of the plans that meet both goals the one that costs the least time, or else the one that misses by the least.

    Prefill goes where the first token comes soonest, counting what the running sequences there lose. Decode goes to
    the fullest worker that still keeps its pace with one more sequence, so that emptier ones stay free for tight goals.
    A local plan saves the transfer and disturbs the sequences around it. Ties go to the pair, then to the smaller id.
    """
    prices = price(demand, view, settings.latency, settings.latencies)
    late = violation(prices.ttft_s, demand.goal.ttft_s)
    by_ttft = _Order(prices.prefill_cost_s, first_by=late)
    plans = []
    if len(found.prefill) and len(found.decode):
        exposed_tpot_s = prices.exposed_tpot_s[by_ttft.best(found.prefill)]
        slow = violation(prices.tpot_s + exposed_tpot_s, demand.goal.tpot_s)
        spare = view.total_blocks - view.peak_blocks - view.reserved_blocks
        pair = _best_pair(found, by_ttft, _Order(spare, first_by=slow))
        if pair is not None:
            plans.append(_plan_pair(demand, prices, *pair))
    if len(found.local):
        by_both = _Order(prices.prefill_cost_s, first_by=late + violation(prices.tpot_s, demand.goal.tpot_s))
        plans.append(_plan_alone(demand, prices, by_both.best(found.local), decodes=True))
    if not plans:
        plans.append(_plan_alone(demand, prices, by_ttft.best(found.prefill), decodes=False))
    best = min(plans, key=lambda plan: (plan.late + plan.slow, plan.cost_s))
    return _route(view, best.prefill, best.decode, best.describe())


def _plan_pair(demand: Demand, prices: Prices, prefill: np.intp, decode: np.intp) -> _Plan:
    ttft_s, tpot_s = prices.ttft_s[prefill], prices.tpot_s[decode] + prices.exposed_tpot_s[prefill]
    cost_s = prices.prefill_cost_s[prefill] + prices.exposed_s[prefill]
    return _judged(demand, prefill, decode, ttft_s, tpot_s, cost_s)


def _plan_alone(demand: Demand, prices: Prices, worker: np.intp, *, decodes: bool) -> _Plan:
    tpot_s = prices.tpot_s[worker] if decodes else np.float64(0)
    cost_s = prices.prefill_cost_s[worker]
    return _judged(demand, worker, worker if decodes else None, prices.ttft_s[worker], tpot_s, cost_s)


def _judged(
    demand: Demand,
    prefill: np.intp,
    decode: np.intp | None,
    ttft_s: np.float64,
    tpot_s: np.float64,
    cost_s: np.float64,
) -> _Plan:
    late = max(0.0, float(ttft_s) / demand.goal.ttft_s - 1.0)  # `violation`, of a number
    slow = max(0.0, float(tpot_s) / demand.goal.tpot_s - 1.0)
    return _Plan(prefill, decode, float(ttft_s), float(tpot_s), late, slow, float(cost_s))


def _route(view: ClusterView, prefill: np.intp, decode: np.intp | None, why: str) -> Route:
    return Route(view.worker_ids[prefill], None if decode is None else view.worker_ids[decode], why)
