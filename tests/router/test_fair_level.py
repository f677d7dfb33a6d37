"""Shares of one priority: fair between tenants by weight, first come first served within each."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from twinpool.router.fair_level import FairLevel

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5, "d": 2.0}
MAX_COST = 10
costs = st.integers(1, MAX_COST)


def add(level: FairLevel, tenant: str, request_id: str, arrived_at: float = 0.0, *, is_blocked: bool = False) -> None:
    level.add(tenant, WEIGHTS[tenant], request_id, arrived_at, is_blocked=is_blocked)


def serve(level: FairLevel, tenant: str, request_id: str, cost: float) -> None:
    level.pay(tenant, WEIGHTS[tenant], cost)
    level.remove(tenant, request_id)


def test_a_tenants_requests_go_in_order_of_arrival_then_id() -> None:
    level = FairLevel()
    for request_id, arrived_at in (("z", 1.0), ("y", 2.0), ("b", 3.0), ("a", 3.0)):
        add(level, "a", request_id, arrived_at)
    order = []
    while (request_id := level.first()) is not None:
        order.append(request_id)
        serve(level, "a", request_id, 5)
    assert order == ["z", "y", "a", "b"]


@given(st.lists(costs, min_size=60, max_size=60), st.lists(st.sampled_from("cd-"), min_size=60, max_size=60))
def test_two_that_wait_together_get_by_weight_within_one_largest_request_whoever_comes_and_goes(
    cost_of: list[int], others: list[str]
) -> None:
    level, got = FairLevel(), {"a": 0.0, "b": 0.0}
    waiting: dict[str, str] = {}
    for tenant in "ab":
        for number in range(60):
            waiting[f"{tenant}{number:03}"] = tenant
            add(level, tenant, f"{tenant}{number:03}", float(number))
    for step, (cost, other) in enumerate(zip(cost_of, others, strict=True)):
        if other != "-":
            waiting[f"{other}{step:03}"] = other
            add(level, other, f"{other}{step:03}", 100.0 + step)
        request_id = level.first()
        assert request_id is not None
        tenant = waiting.pop(request_id)
        serve(level, tenant, request_id, cost)
        level.check()
        if tenant in got:
            got[tenant] += cost / WEIGHTS[tenant]
        assert abs(got["a"] - got["b"]) <= MAX_COST / min(WEIGHTS["a"], WEIGHTS["b"])


@given(st.lists(st.tuples(st.integers(0, 3), costs), min_size=40, max_size=40), costs)
def test_ever_new_tenants_keep_nobody_from_its_turn(newcomers: list[tuple[int, int]], cost: int) -> None:
    level, number = FairLevel(), 0
    for old in ("old0", "old1"):
        level.add("old", 1.0, old, 0.0, is_blocked=False)
    level.pay("old", 1.0, MAX_COST)  # its first went, and its second has to wait for its share
    level.remove("old", "old0")
    served_before = 0
    while (request_id := level.first()) != "old1":
        served_before += 1
        if request_id is not None:
            level.pay(request_id, 1.0, cost)
            level.remove(request_id, request_id)
        arrivals = newcomers[served_before % len(newcomers)][0] if len(level) < 10 else 0
        for _ in range(arrivals):
            number += 1
            level.add(f"new{number}", 1.0, f"new{number}", float(number), is_blocked=False)
        assert served_before <= 13 * MAX_COST  # at most 10 + 3 wait, and time runs by cost / 13 or more with each


def test_waiting_for_leave_to_run_earns_no_share() -> None:
    level = FairLevel()
    for number in range(8):
        add(level, "a", f"a{number}", float(number), is_blocked=True)
        add(level, "d", f"d{number}", float(number))
    for number in range(4):
        assert level.first() == f"d{number}"
        serve(level, "d", f"d{number}", 2)
    level.set_blocked("a", is_blocked=False)
    order = []
    for _ in range(6):
        request_id = level.first()
        assert request_id is not None
        order.append(request_id[0])
        serve(level, request_id[0], request_id, 2)
    assert order.count("a") <= 3  # two of weight 2 against one of weight 1, from now on


def test_tenants_that_have_had_their_share_are_forgotten() -> None:
    level = FairLevel()
    add(level, "a", "stays", 0.0, is_blocked=True)
    for number in range(1000):
        tenant = f"t{number}"
        level.add(tenant, 1.0, tenant, float(number), is_blocked=False)
        level.pay(tenant, 1.0, 1.0)
        level.remove(tenant, tenant)
    assert len(level._flows) < 10


@dataclass
class Flow:
    weight: float
    tag: float
    waiting: list[tuple[float, str]] = field(default_factory=list)
    is_blocked: bool = False


class Model:
    """The same rules over plain lists: everything is looked through each time, and nothing is forgotten."""

    def __init__(self) -> None:
        self.now = 0.0
        self.flows: dict[str, Flow] = {}

    def waiting(self) -> list[Flow]:
        return [flow for flow in self.flows.values() if flow.waiting]

    def add(self, tenant: str, request_id: str, arrived_at: float, is_blocked: bool) -> None:
        flow = self.flows.setdefault(tenant, Flow(WEIGHTS[tenant], self.now))
        if not flow.waiting:
            flow.tag, flow.is_blocked = max(flow.tag, self.now), is_blocked
        flow.waiting.append((arrived_at, request_id))

    def serve(self, tenant: str, cost: int) -> None:
        self.flows[tenant].tag += cost / WEIGHTS[tenant]
        self.now += cost / sum(flow.weight for flow in self.waiting())
        self.catch_up()
        flow = self.flows[tenant]
        flow.waiting.remove(min(flow.waiting))
        self.catch_up()

    def catch_up(self) -> None:
        tags = [flow.tag for flow in self.waiting() if not flow.is_blocked]
        self.now = max([self.now, *([min(tags)] if tags else [])])

    def first(self) -> str | None:
        heads = [(flow.tag, *min(flow.waiting)) for flow in self.waiting() if not flow.is_blocked]
        return min(heads)[2] if heads else None


events = st.tuples(
    st.sampled_from("abcd"), st.integers(0, 5), st.sampled_from(["add", "serve", "serve", "block"]), costs
)


@given(st.lists(events, max_size=60))
def test_it_equals_a_model_of_plain_lists(plan: list[tuple[str, int, str, int]]) -> None:
    level, model, tenant_of, blocked = FairLevel(), Model(), dict[str, str](), set[str]()
    for number, (tenant, arrived_at, what, cost) in enumerate(plan):
        if what == "add":
            request_id = f"r{number:03}"
            tenant_of[request_id] = tenant
            add(level, tenant, request_id, arrived_at, is_blocked=tenant in blocked)
            model.add(tenant, request_id, arrived_at, tenant in blocked)
        elif what == "block":
            blocked ^= {tenant}
            level.set_blocked(tenant, is_blocked=tenant in blocked)
            flow = model.flows.get(tenant)
            if flow is not None and flow.waiting and flow.is_blocked != (tenant in blocked):
                flow.is_blocked, flow.tag = tenant in blocked, max(flow.tag, model.now)
        elif (first := model.first()) is not None:
            assert level.first() == first
            model.serve(tenant_of[first], cost)
            serve(level, tenant_of[first], first, cost)
        if not model.waiting():
            model = Model()
        level.check()
        assert level.first() == model.first()
