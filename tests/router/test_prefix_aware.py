"""Who is cheapest by cached blocks and load, and that what many ask for spreads when its holder is too busy."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpool.core.messages import Goal, Request, Role
from twinpool.core.sampling import SamplingParams
from twinpool.router.admission import AdmissionSettings
from twinpool.router.demand import Demand
from twinpool.router.placement import place
from twinpool.router.prefix_aware import prefix_cost
from twinpool.router.prefix_index import PrefixIndex
from twinpool.router.route import Disaggregate, PlacementSettings, Policy, Route
from twinpool.router.view_table import ViewTable
from twinpool.router.views import ClusterView, WorkerLoad, WorkerView
from twinpool.router.waiting import Placing, WaitingRoom

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
BLOCK_TOKENS = 16
PROMPT_BLOCKS = 20
DEMAND = Demand(num_tokens=PROMPT_BLOCKS * BLOCK_TOKENS + 1, max_new_tokens=16, goal=Goal(10.0, 1.0))
LOCAL = PlacementSettings(Policy.PREFIX_AWARE, Disaggregate.NEVER)
PAIRS = PlacementSettings(Policy.PREFIX_AWARE, Disaggregate.ALWAYS)


def table_of(roles: dict[str, Role], **loads: WorkerLoad) -> ViewTable:
    table = ViewTable()
    for worker_id, role in roles.items():
        table.join(WorkerView(worker_id, "a", role, 1000, BLOCK_TOKENS, load=loads.get(worker_id, WorkerLoad())), 0.0)
    return table


def cached(view: ClusterView, **blocks: int) -> Demand:
    tokens = np.array([blocks.get(worker_id, 0) * BLOCK_TOKENS for worker_id in view.worker_ids])
    return replace(DEMAND, cached_tokens=tokens)


def chosen(table: ViewTable, settings: PlacementSettings, **blocks: int) -> tuple[str, str | None]:
    view = table.snapshot(0.0)
    route = place(cached(view, **blocks), view, settings)
    assert isinstance(route, Route)
    return route.prefill, route.decode


def test_the_cost_is_blocks_to_compute_by_weight_and_blocks_to_keep() -> None:
    load = WorkerLoad(waiting_prefills=1, waiting_prefill_tokens=64, peak_blocks=7, reserved_blocks=2)
    view = table_of({"a": M, "b": M}, b=load).snapshot(0.0)
    cost = prefix_cost(cached(view, a=20, b=15), view, 2.0)
    assert cost.tolist() == pytest.approx([3 * 1 / 16, 2 * 4 + 9 + 3 * (5 + 1 / 16)])


def test_a_prompt_goes_where_most_of_it_is_cached() -> None:
    assert chosen(table_of({"a": M, "b": M, "c": M}), LOCAL, b=10, c=9) == ("b", "b")
    assert chosen(table_of({"a": P, "b": P, "d": D, "e": D}), PAIRS, b=10, e=3) == ("b", "e")


def test_a_decode_worker_that_holds_the_prompt_is_chosen_until_its_load_costs_more_than_sending() -> None:
    roles = {"p": P, "d": D, "e": D}
    for held, expected in ((19, "e"), (21, "d")):
        table = table_of(roles, e=WorkerLoad(peak_blocks=held))
        assert chosen(table, PAIRS, e=10) == ("p", expected)


def test_without_any_cache_the_least_loaded_is_chosen() -> None:
    table = table_of({"a": M, "b": M}, a=WorkerLoad(peak_blocks=5))
    assert chosen(table, LOCAL) == ("b", "b")
    view = table.snapshot(0.0)
    assert place(DEMAND, view, LOCAL) == place(cached(view), view, LOCAL)


def test_the_weight_of_overlap_decides_between_cache_and_load() -> None:
    table = table_of({"a": M, "b": M}, a=WorkerLoad(peak_blocks=50))
    assert chosen(table, LOCAL, a=20) == ("b", "b")
    assert chosen(table, replace(LOCAL, overlap_weight=2.0), a=20) == ("a", "a")
    table = table_of({"a": M, "b": M}, a=WorkerLoad(peak_blocks=50, waiting_prefill_tokens=10_000))
    assert chosen(table, replace(LOCAL, overlap_weight=0.0), b=1, a=20) == ("b", "b")


@pytest.mark.parametrize("policy", [Policy.PREFIX_AWARE, Policy.SLO])
def test_a_hot_prefix_gets_another_holder_once_the_first_is_busier_than_computing_is_long(policy: Policy) -> None:
    """Requests with one prefix, each sent where the policy says and cached there, none of them done yet."""
    table, index = table_of({"a": P, "b": P, "d": D}), PrefixIndex()
    for worker_id in ("a", "b", "d"):
        index.join(worker_id)
        index.apply(worker_id, 1, list(range(PROMPT_BLOCKS)) if worker_id == "a" else [], (), cleared=True)
    went = []
    for number in range(2 * PROMPT_BLOCKS):
        view = table.snapshot(0.0)
        own = [number, *range(1000 + 10 * number, 1005 + 10 * number)]  # five blocks that nobody else has
        chain = [*range(PROMPT_BLOCKS), *own]
        tokens = BLOCK_TOKENS * index.matched([chain], view.worker_ids)
        demand = replace(DEMAND, num_tokens=len(chain) * BLOCK_TOKENS + 1, cached_tokens=tokens)
        route = place(demand, view, PlacementSettings(policy, Disaggregate.ALWAYS))
        assert isinstance(route, Route)
        uncached = demand.num_tokens - int(tokens[view.worker_ids.index(route.prefill)])
        table.add_inflight(route.prefill, str(number), prefill_tokens=uncached)
        index.apply(route.prefill, 2 + went.count(route.prefill), chain, ())
        went.append(route.prefill)
    assert went[0] == "a"
    first_elsewhere = went.index("b")
    assert first_elsewhere >= 3  # the queue at a had to grow first
    assert {went.count("a"), went.count("b")} <= set(range(16, 25))  # from then on both hold it, and share the rest


def test_a_route_says_what_its_prefill_worker_is_thought_to_hold() -> None:
    table = table_of({"a": P, "b": P, "d": D})
    asked: list[tuple[str, ...]] = []

    def cached_tokens(_: Request, worker_ids: tuple[str, ...]) -> NDArray[np.int64]:
        asked.append(worker_ids)
        return np.array([0, 3 * BLOCK_TOKENS, 0])

    room = WaitingRoom(table, PAIRS, AdmissionSettings(), cached_tokens)
    request = Request("r", 1, (0,) * 100, 100, SamplingParams(max_tokens=9, seed=0), Goal(1.0, 1.0))
    placing = Placing(request, 0.0, 100.0)
    room.put(placing, 0.0)
    route = room.place(placing, 0.0)
    assert isinstance(route, Route)
    assert (route.prefill, route.decode, route.cached_tokens) == ("b", "d", 3 * BLOCK_TOKENS)
    assert asked == [("a", "b", "d")]
