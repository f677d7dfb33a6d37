"""Small simulated clusters drawn from a seed, and an observer that keeps all that it is told."""

import random

from twinpool.core.messages import Goal, Role
from twinpool.router.estimate import LatencyModel, LinearForm
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.cluster import SimulatedCluster, simulate
from twinpool.simulator.observer import Gauge, Observer, Steps, Transfer
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.scenario import (
    Fault,
    FaultKind,
    GoalClass,
    PrefixCache,
    Scenario,
    SimulatedWorker,
    WorkerKind,
)
from twinpool.simulator.trace import TraceRequest

FORM = LinearForm(18e-3, 102e-6, 0, 20e-3, 0.6e-6, 40e-6)
PIECE_TOKENS = 64


class Seen(Observer):
    """Keeps everything, and fails where something ends twice or time runs backwards."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.num_offered = 0
        self.steps: list[Steps] = []
        self.transfers: list[Transfer] = []
        self.gauges: list[Gauge] = []
        self.happenings: list[tuple[float, int, str]] = []
        self._now = 0.0
        self._busy_until_s: dict[int, float] = {}

    def _tick(self, at_s: float) -> None:
        assert at_s >= self._now
        self._now = at_s

    def offered(self, index: int, at_s: float) -> None:
        self._tick(at_s)
        assert index == self.num_offered
        self.num_offered += 1

    def stepped(self, steps: Steps) -> None:
        assert steps.started_s >= self._busy_until_s.get(steps.worker, 0.0)
        assert steps.started_s < steps.ended_s
        assert steps.num_steps <= 1 or not steps.prefill_tokens
        self._busy_until_s[steps.worker] = steps.ended_s
        self.steps.append(steps)

    def transferred(self, transfer: Transfer) -> None:
        self._tick(transfer.ended_s)
        self.transfers.append(transfer)

    def gauged(self, gauge: Gauge) -> None:
        self._tick(gauge.at_s)
        self.gauges.append(gauge)

    def happened(self, at_s: float, worker: int, what: str) -> None:
        self._tick(at_s)
        self.happenings.append((at_s, worker, what))

    def ended(self, outcome: Outcome) -> None:
        self._tick(outcome.end_s)
        assert outcome.index not in self.outcomes
        self.outcomes[outcome.index] = outcome

    @property
    def completed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes.values() if outcome.ending is Ending.COMPLETED]


def watch(
    scenario: Scenario, trace: list[TraceRequest], until_s: float = float("inf")
) -> tuple[Seen, SimulatedCluster]:
    """Run it to its end."""
    seen = Seen()
    return seen, simulate(scenario, trace, [seen], until_s)


def draw_world(seed: int, *, is_crowded: bool = False) -> tuple[Scenario, list[TraceRequest]]:
    """A few workers, often too small or too slow for what comes, half the time with faults.

    Crowded ones have small workers, and answers much shorter than their limits but for a few: forecasts go wrong.
    """
    draw = random.Random(seed)
    kind = WorkerKind(
        "k", FORM, 160 * 1024, draw.choice([45, 60] if is_crowded else [70, 300, 2000]), 16,
        nic_bytes_per_s=draw.choice([1e8, 1e9, 25e9]), layer_groups=draw.choice([1, 4, 32]),
    )  # fmt: skip
    roles = [Role.PREFILL] * draw.randint(1, 3) + [Role.DECODE] * draw.randint(1, 3) + [Role.MIXED] * draw.randint(0, 2)
    if is_crowded and draw.random() < 0.5:
        roles = [Role.MIXED] * 3
    workers = tuple(
        SimulatedWorker(f"w{place}", role, kind, node=draw.choice(["", "n0"]), speed=draw.choice([1.0, 1.0, 0.5]))
        for place, role in enumerate(roles)
    )
    trace = _draw_crowd(draw) if is_crowded else _draw_trace(draw)
    faults = tuple(
        Fault(
            draw.choice(list(FaultKind)),
            draw.choice(workers).worker_id,
            draw.uniform(0, trace[-1].arrival_s + 5),
            draw.choice([1.0, 5.0, float("inf")]),
        )
        for _ in range(0 if is_crowded else draw.choice([0, 0, 1, 3, 6]))
    )
    placement = PlacementSettings(
        policy=draw.choice(list(Policy)),
        disaggregate=draw.choice(list(Disaggregate)),
        mixed_pool=draw.random() < 0.4,
        latencies={"k": LatencyModel(FORM, kv_token_bytes=kind.kv_token_bytes)},
        max_waiting_prefill_tokens=draw.choice([500, 32_768]),
    )
    return Scenario(
        workers,
        {"default": GoalClass(Goal(1.0, 0.1), deadline_s=draw.choice([None, None, 20.0])), "batch": _BATCH},
        placement=placement,
        num_gateways=3 if is_crowded else draw.choice([1, 1, 3]),  # several know less, and promise more
        message_s=0.05 if is_crowded else draw.choice([0.0, 5e-4, 0.02]),
        start_s=draw.choice([1.0, 20.0]),
        step_noise=draw.choice([0.0, 0.15]),
        max_running=draw.choice([4, 256]),
        parked_share=1.0 if is_crowded else draw.choice([0.0, 0.3, 1.0]),
        prefix_cache=draw.choice(list(PrefixCache)),
        hash_tokens=PIECE_TOKENS,
        faults=faults,
        seed=seed,
    ), trace


_BATCH = GoalClass(Goal(60.0, 1.0), priority=1)


def _draw_trace(draw: random.Random) -> list[TraceRequest]:
    rate, now, trace = draw.choice([1, 5, 20, 200]), 0.0, []
    for _ in range(draw.randint(20, 120)):
        now += draw.expovariate(rate)
        prompt, output = draw.randint(1, 600), draw.choice([1, draw.randint(1, 20), draw.randint(1, 300)])
        names = tuple(draw.randint(0, 3) * 100 + place for place in range(prompt // PIECE_TOKENS))
        trace.append(
            TraceRequest(
                now, prompt, output, draw.choice([0, output, 400]), draw.choice(["default", "default", "batch"]),
                draw.choice(["", "tenant"]), names, PIECE_TOKENS,
            )
        )  # fmt: skip
    return trace


def _draw_crowd(draw: random.Random) -> list[TraceRequest]:
    now, trace = 0.0, []
    for place in range(100):
        now += draw.expovariate(20)
        is_long = place > 30 and draw.random() < 0.3
        output = draw.randint(150, 300) if is_long else draw.randint(1, 10)
        trace.append(TraceRequest(now, draw.randint(1, 200), output, 300))
    return trace


def assert_settled(seen: Seen, cluster: SimulatedCluster) -> None:
    """Every request has ended once, with all its tokens or an error, and the workers hold nothing for any."""
    assert seen.num_offered == len(seen.outcomes)
    for outcome in seen.outcomes.values():
        assert outcome.ending is not Ending.CUT
        assert bool(outcome.why) == (outcome.ending is not Ending.COMPLETED)
        assert outcome.num_tokens <= outcome.offered.output_tokens
        if outcome.ending is Ending.COMPLETED:
            assert outcome.num_tokens == outcome.offered.output_tokens
            assert outcome.first_token_s is not None
            assert outcome.arrival_s < outcome.first_token_s <= outcome.end_s
            assert (
                outcome.held_s + outcome.queued_s + outcome.prefill_s
                <= outcome.first_token_s - outcome.arrival_s + 1e-9
            )
    cluster.check()
    for process in cluster.processes:
        if not process.is_dead:
            assert process.engine.pool.num_free == process.engine.pool.num_blocks
            assert process.num_attempts == 0, f"worker {process.place} holds something"
    for gateway in cluster.gateways:
        assert gateway.num_held == gateway.num_in_flight == 0
