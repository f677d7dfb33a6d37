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
from twinpool.router.pricing import Prices, Seconds, price, violation
from twinpool.router.route import Hold, PlacementSettings, Policy, Reject, Route
from twinpool.router.views import ClusterView

MARGIN = 0.95  # of each goal is planned for: predictions err
ANSWER_TOKENS = 64.0  # over which a stall of others is spread, as TPOT is a mean over an answer


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
        best: np.intp = workers[self.by[workers].argmin()]
        return best


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
    harm: float  # the same of the others that decode there, added up, as far as this plan brings it about
    cost_s: float  # seconds that this request and those already there wait because of the plan

    @property
    def misses(self) -> float:
        return self.late + self.slow + self.harm

    def describe(self) -> str:
        reasons = (("ttft", self.late), ("tpot", self.slow), ("others' tpot", self.harm))
        missed = " and ".join(name for name, amount in reasons if amount)
        verdict = f"misses {missed} by the least" if missed else "meets its goals for the least time"
        return f"{verdict}: ttft {self.ttft_s:.3g} s, tpot {self.tpot_s:.3g} s, cost {self.cost_s:.3g} s"


def _slo(demand: Demand, view: ClusterView, found: Candidates, settings: PlacementSettings) -> Route:
    """Of the plans that meet all goals the one that costs the least time, or else the one that misses by the least.

    Misses are those of this request and, added up, of all that decode where it would: so a plan is not taken to be
    cheap because others pay for it. Prefill goes where the first token comes soonest, counting what the running
    sequences there lose. Decode goes to the fullest worker that still keeps everybody's pace, so that emptier ones stay
    free for tight goals. A local plan saves the transfer, and stalls the sequences around it for as long as its prefill
    takes. Ties go to the pair, then to the smaller id.
    """
    prices = price(demand, view, settings.latency, settings.latencies)
    late = violation(prices.ttft_s, MARGIN * demand.goal.ttft_s)
    by_ttft = _Order(prices.prefill_cost_s, first_by=late)
    plans = []
    if len(found.prefill) and len(found.decode):
        slow = _slow(demand, prices.tpot_s + prices.exposed_tpot_s[by_ttft.best(found.prefill)])
        harm = _harm(demand, prices, stall_s=0.0)
        spare = view.total_blocks - view.peak_blocks - view.reserved_blocks
        pair = _best_pair(found, by_ttft, _Order(spare, first_by=slow + harm))
        if pair is not None:
            plans.append(_plan_pair(prices, *pair, late, slow, harm))
    if len(found.local):
        slow, harm = _slow(demand, prices.tpot_s), _harm(demand, prices, stall_s=prices.stall_s / ANSWER_TOKENS)
        worker = _Order(prices.prefill_cost_s, first_by=late + slow + harm).best(found.local)
        plans.append(_plan_local(prices, worker, late, slow, harm))
    if not plans:
        return _plan_prefill(view, prices, by_ttft.best(found.prefill), late)
    best = min(plans, key=lambda plan: (plan.misses, plan.cost_s))
    return _route(view, best.prefill, best.decode, best.describe())


def _slow(demand: Demand, tpot_s: Seconds) -> Seconds:
    """[N] By how much of its TPOT goal a request misses it."""
    return violation(tpot_s, MARGIN * demand.goal.tpot_s)


def _harm(demand: Demand, prices: Prices, *, stall_s: float | Seconds) -> Seconds:
    """[N] The same of the others that decode there, added up, as far as this request brings it about.

    Their goals are taken to be as its own. ``stall_s`` comes to each of their gaps, beside the larger batch.
    """
    return prices.others * (_slow(demand, prices.tpot_s + stall_s) - _slow(demand, prices.tpot_before_s))


def _plan_pair(prices: Prices, prefill: np.intp, decode: np.intp, late: Seconds, slow: Seconds, harm: Seconds) -> _Plan:
    tpot_s = prices.tpot_s[decode] + prices.exposed_tpot_s[prefill]
    cost_s = prices.prefill_cost_s[prefill] + prices.exposed_s[prefill]
    misses = float(late[prefill]), float(slow[decode]), float(harm[decode])
    return _Plan(prefill, decode, float(prices.ttft_s[prefill]), float(tpot_s), *misses, float(cost_s))


def _plan_local(prices: Prices, worker: np.intp, late: Seconds, slow: Seconds, harm: Seconds) -> _Plan:
    misses = float(late[worker]), float(slow[worker]), float(harm[worker])
    predicted_s = float(prices.ttft_s[worker]), float(prices.tpot_s[worker])
    return _Plan(worker, worker, *predicted_s, *misses, float(prices.prefill_cost_s[worker]))


def _plan_prefill(view: ClusterView, prices: Prices, worker: np.intp, late: Seconds) -> Route:
    """With no token left to decode."""
    ttft_s, cost_s = float(prices.ttft_s[worker]), float(prices.prefill_cost_s[worker])
    return _route(
        view, worker, None, _Plan(worker, None, ttft_s, 0.0, float(late[worker]), 0.0, 0.0, cost_s).describe()
    )


def _route(view: ClusterView, prefill: np.intp, decode: np.intp | None, why: str) -> Route:
    return Route(view.worker_ids[prefill], None if decode is None else view.worker_ids[decode], why)
