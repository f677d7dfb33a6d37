"""Simulated times against closed forms of queueing theory, and against tiny cases worked by hand."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import exp
from statistics import fmean, stdev

import pytest

from twinpool.core.messages import Role
from twinpool.router.estimate import LinearForm
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.cluster import simulate
from twinpool.simulator.observer import Observer
from twinpool.simulator.outcome import Outcome
from twinpool.simulator.scenario import Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.trace import TraceRequest

from .builders import kind, scenario
from .cluster_worlds import Seen, watch
from .engine_world import FORM, Job, LiveWorker, SimulatedWorkerAlone, Size

PAIRED = PlacementSettings(
    policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS, max_waiting_prefill_tokens=10**9
)

# --- a queue ------------------------------------------------------------------------------------------------------

PROMPT = 512  # as many tokens as a step computes, so that each prompt is one step and none shares it
SERVICE_S = 0.05
BATCHES = 20  # of which the means are nearly independent


class Waits(Observer):
    """From arrival to the begin of service, of each request."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    def ended(self, outcome: Outcome) -> None:
        assert outcome.ttft_s is not None
        self.waits_s.append(outcome.ttft_s - outcome.prefill_s)

    def mean_and_error(self) -> tuple[float, float]:
        """With the standard error of the mean, from the means of long batches."""
        size = len(self.waits_s) // BATCHES
        means = [fmean(self.waits_s[batch * size : (batch + 1) * size]) for batch in range(BATCHES)]
        return fmean(means), stdev(means) / BATCHES**0.5


def _poisson(rate: float, num_requests: int) -> Iterator[TraceRequest]:
    draw, now = random.Random(7), 0.0
    for _ in range(num_requests):
        now += draw.expovariate(rate)
        yield TraceRequest(now, PROMPT, 1)


def _waits(utilisation: float, noise: float, num_requests: int) -> Waits:
    steady = kind(truth=LinearForm(SERVICE_S, 0.0, 0.0, 1.0, 0.0, 0.0), num_blocks=10_000)
    workers = (SimulatedWorker("p", Role.PREFILL, steady),)
    waits = Waits()
    queue = scenario(workers=workers, placement=PAIRED, message_s=0.0, chunk_tokens=PROMPT, step_noise=noise)
    simulate(queue, _poisson(utilisation / SERVICE_S, num_requests), [waits])
    return waits


@pytest.mark.slow
@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_one_worker_of_single_tokens_waits_as_an_m_d_1_queue(utilisation: float):
    waits = _waits(utilisation, 0.0, 3000)
    expected_s = utilisation * SERVICE_S / (2 * (1 - utilisation))
    mean_s, error_s = waits.mean_and_error()
    assert error_s < 0.15 * expected_s
    assert mean_s == pytest.approx(expected_s, abs=3.5 * error_s)
    idle = fmean(wait_s < 1e-9 for wait_s in waits.waits_s)
    assert idle == pytest.approx(1 - utilisation, abs=0.05)


@pytest.mark.slow
def test_with_noise_it_waits_as_an_m_g_1_queue():
    noise, utilisation = 0.8, 0.6
    mean_s, error_s = _waits(utilisation, noise, 4000).mean_and_error()
    second_moment = SERVICE_S**2 * exp(noise**2)  # of a lognormal time of that mean
    expected_s = utilisation / SERVICE_S * second_moment / (2 * (1 - utilisation))
    assert mean_s == pytest.approx(expected_s, abs=3.5 * error_s)
    assert mean_s > 1.3 * utilisation * SERVICE_S / (2 * (1 - utilisation))  # more than without


# --- by hand ------------------------------------------------------------------------------------------------------

MS = 1e-3
HAND = LinearForm(5 * MS, 0.1 * MS, 0.0, 10 * MS, 0.01 * MS, 1 * MS)


def hand_kind(**more: object) -> WorkerKind:
    """A message takes 1 ms, and a handoff 2 ms beside its bytes, a thousand for each token, in four layer groups."""
    own = {"truth": HAND, "kv_token_bytes": 1000, "link_latency_s": 2 * MS, "layer_groups": 4}
    return kind(**(own | more))


def hand(roles: dict[str, Role], one: WorkerKind, **more: object) -> Scenario:
    workers = tuple(SimulatedWorker(worker_id, role, one) for worker_id, role in roles.items())
    return scenario(**({"workers": workers, "placement": PAIRED, "message_s": 1 * MS} | more))


PAIR = {"p": Role.PREFILL, "d": Role.DECODE}


def only(seen: Seen) -> Outcome:
    assert len(seen.outcomes) == 1
    return seen.outcomes[0]


def test_one_request_through_two_pools_to_the_microsecond():
    seen, _ = watch(hand(PAIR, hand_kind(nic_bytes_per_s=1e9)), [TraceRequest(0.0, 32, 4)])
    outcome, (transfer,) = only(seen), seen.transfers
    prefill_s = (5 + 3.2) * MS
    computed_s = 1 * MS + prefill_s
    assert outcome.ttft_s == pytest.approx(computed_s + 1 * MS)
    assert (outcome.held_s, outcome.queued_s) == pytest.approx((0.0, 0.0))
    assert outcome.prefill_s == pytest.approx(prefill_s)
    # The order takes 1 ms, Started another, the grant a third; a quarter of the layers is computed 50 us later, and the
    # last quarter's 8000 bytes leave when all is computed.
    assert transfer.started_s == pytest.approx(1 * MS + prefill_s / 4)
    joined_s = computed_s + 8000 / 1e9 + 2 * MS
    assert transfer.ended_s == pytest.approx(joined_s)
    assert outcome.handoff_s == outcome.exposed_s == pytest.approx(joined_s - computed_s)
    assert outcome.kv_bytes == transfer.num_bytes == 32_000
    decode_s = sum(10 * MS + 0.01 * MS * context + 1 * MS for context in (33, 34, 35))
    assert outcome.end_s == pytest.approx(joined_s + decode_s + 1 * MS)
    assert outcome.tpot_s == pytest.approx((outcome.end_s - outcome.ttft_s) / 3)


def test_sending_and_joining_take_the_engines_time_where_the_profile_says_so():
    trace = [TraceRequest(0.0, 32, 4)]
    plain, _ = watch(hand(PAIR, hand_kind(nic_bytes_per_s=1e9)), trace)
    seen, _ = watch(hand(PAIR, hand_kind(nic_bytes_per_s=1e9, send_s=3 * MS, join_s=7 * MS)), trace)
    before, outcome = only(plain), only(seen)
    assert before.first_token_s is not None
    assert outcome.first_token_s == pytest.approx(before.first_token_s + 3 * MS)
    assert outcome.end_s - outcome.first_token_s == pytest.approx(before.end_s - before.first_token_s + 7 * MS)
    alone, _ = watch(hand({"p": Role.MIXED}, hand_kind(send_s=3 * MS, join_s=7 * MS)), trace)
    undisturbed, _ = watch(hand({"p": Role.MIXED}, hand_kind()), trace)
    assert only(alone).end_s == only(undisturbed).end_s  # no handoff, no such time


def test_a_prompt_of_several_steps_is_sent_once_and_what_joins_together_pays_for_each():
    one = hand_kind(nic_bytes_per_s=1e9, send_s=3 * MS, join_s=7 * MS)
    seen, _ = watch(hand(PAIR, one, chunk_tokens=16), [TraceRequest(0.0, 48, 2)])
    steps_s = [steps.ended_s - steps.started_s for steps in seen.steps if steps.worker == 0]
    assert steps_s == pytest.approx([6.6 * MS, 6.6 * MS, 9.6 * MS])
    early = [TraceRequest(0.0, 16, 9)]  # one decodes for long enough that the next two arrive during one of its steps
    late = [TraceRequest(at_s, 16, 3) for at_s in (0.03, 0.0301, 0.0302)]
    slow = replace(one, truth=replace(HAND, decode_alpha_s=60 * MS))
    seen, _ = watch(hand(PAIR, slow), early + late)
    joined = [(before, after) for before, after in pairwise(s for s in seen.steps if s.worker == 1)]
    (more,) = [after for before, after in joined if after.batch == before.batch + 3]
    expected_s = slow.truth.decode_seconds(more.context_tokens + 4, 4, more.num_steps) + 3 * 7 * MS
    assert more.ended_s - more.started_s == pytest.approx(expected_s)


def test_a_transfer_that_outlasts_the_prefill_is_exposed_by_what_it_outlasts_it():
    seen, _ = watch(hand(PAIR, hand_kind(nic_bytes_per_s=1e6)), [TraceRequest(0.0, 32, 2)])
    outcome = only(seen)
    prefill_s, wire_s = 8.2 * MS, 32_000 / 1e6
    assert outcome.wire_s == pytest.approx(wire_s + 2 * MS)  # the last bytes are under way for 2 ms
    assert outcome.exposed_s == pytest.approx(prefill_s / 4 + wire_s + 2 * MS - prefill_s)
    step_s = 10 * MS + 0.33 * MS + 1 * MS
    assert outcome.end_s == pytest.approx(1 * MS + prefill_s / 4 + wire_s + 2 * MS + step_s + 1 * MS)


def test_prompts_that_come_while_one_is_computed_share_the_next_step_up_to_its_tokens():
    trace = [TraceRequest(0.0, 32, 1), TraceRequest(0.0, 48, 1), TraceRequest(0.0, 80, 1)]

    def ttfts(chunk_tokens: int) -> list[float | None]:
        seen, _ = watch(hand({"p": Role.PREFILL}, hand_kind(), chunk_tokens=chunk_tokens), trace)
        return [outcome.ttft_s for _, outcome in sorted(seen.outcomes.items())]

    first_s = (1 + 8.2) * MS
    shared_s = first_s + (5 + 12.8) * MS
    assert ttfts(512) == pytest.approx([first_s + MS, shared_s + MS, shared_s + MS])
    full_s = first_s + (5 + 10) * MS  # 48 tokens and 52 of the 80
    assert ttfts(100) == pytest.approx([first_s + MS, full_s + MS, full_s + (5 + 2.8) * MS + MS])


def test_two_handoffs_share_the_targets_card_and_then_its_steps():
    roles = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d": Role.DECODE}
    seen, _ = watch(hand(roles, hand_kind(nic_bytes_per_s=1e6)), [TraceRequest(0.0, 32, 3), TraceRequest(0.0, 32, 3)])
    landed_s = 1 * MS + 8.2 * MS / 4 + 32_000 / 0.5e6 + 2 * MS
    assert [transfer.ended_s for transfer in seen.transfers] == pytest.approx([landed_s, landed_s])
    alone_s = (10 + 0.01 * 33 + 1) * MS  # the one that is heard first begins at once
    both_s = (10 + 0.01 * (34 + 33) + 2) * MS
    last_s = (10 + 0.01 * 34 + 1) * MS
    ends = sorted(outcome.end_s for outcome in seen.outcomes.values())
    assert ends == pytest.approx([landed_s + alone_s + both_s + MS, landed_s + alone_s + both_s + last_s + MS])


def test_workers_of_one_node_share_its_card():
    one = hand_kind(nic_bytes_per_s=1e6)
    workers = tuple(SimulatedWorker(f"p{n}", Role.PREFILL, one, node="n0") for n in (0, 1))
    workers += tuple(SimulatedWorker(f"d{n}", Role.DECODE, one) for n in (0, 1))
    seen, _ = watch(
        scenario(workers=workers, placement=PAIRED, message_s=1 * MS), [TraceRequest(0.0, 32, 2)] * 2
    )  # fmt: skip
    assert {transfer.target for transfer in seen.transfers} == {2, 3}
    assert [outcome.wire_s for outcome in seen.outcomes.values()] == pytest.approx([0.064 + 2 * MS] * 2)


def test_a_local_plan_prefills_between_the_decode_steps_of_others():
    local = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.NEVER)
    trace = [TraceRequest(0.0, 32, 3), TraceRequest(10 * MS, 48, 2)]
    seen, _ = watch(hand({"m": Role.MIXED}, hand_kind(), placement=local), trace)
    first_s = (1 + 8.2) * MS
    step_s = (10 + 0.33 + 1) * MS  # under way when the second prompt comes
    both_s = (10 + 4.8 + 0.34 + 1) * MS  # the larger of the fixed terms, its tokens, and the other's second token
    assert seen.outcomes[0].end_s == pytest.approx(first_s + step_s + both_s + MS)
    assert seen.outcomes[1].first_token_s == pytest.approx(first_s + step_s + both_s + MS)
    assert seen.outcomes[1].queued_s == pytest.approx(first_s + step_s - 11 * MS)
    assert seen.outcomes[1].end_s == pytest.approx(first_s + step_s + both_s + (10 + 0.49 + 1) * MS + MS)


@pytest.mark.parametrize("worker", [LiveWorker, SimulatedWorkerAlone])
def test_the_younger_of_two_gives_way_when_the_older_lacks_a_block(
    worker: type[LiveWorker] | type[SimulatedWorkerAlone],
):
    """Two prompts of two blocks in a pool of seven, after answers of two tokens: both are let in, and write 40.

    The older takes blocks at contexts of 16, 24 and 32 tokens, the younger one step later. Seven are taken when the
    younger stands at 24: it sits out while the older goes on to 32, and gives way then.
    """
    jobs = [Job(index, index * 0.1 * MS, "arriving", 16, 40, 40, 10 * MS) for index in (0, 1)]
    alone = worker(jobs, Size(num_blocks=7))
    for _ in range(20):
        alone.lengths.add(2)
    told = alone.run()

    def step_s(number: int) -> float:
        is_shared = 2 <= number <= 9
        context = 16 + number + (15 + number if is_shared else 0)
        return FORM.decode_seconds(float(context), 2 if is_shared else 1, 1)

    def after_s(number: int) -> float:
        return 10 * MS + sum(step_s(step) for step in range(1, number + 1))

    expected = [(0.0, "bound", 0), (0.1 * MS, "bound", 1), (after_s(16), "preempted", 1), (after_s(39), "ended", 0)]
    assert [(what, index) for _, what, index in told.sorted()] == [(what, index) for _, what, index in expected]
    assert [at_s for at_s, _, _ in told.sorted()] == pytest.approx([at_s for at_s, _, _ in expected])
