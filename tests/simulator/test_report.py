"""The report of made-up runs."""

import numpy as np
import pytest

from twinpool.cluster.bench import measures
from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.cluster import simulate
from twinpool.simulator.observer import Gauge, Observer, Steps, Transfer
from twinpool.simulator.outcome import Outcome
from twinpool.simulator.report import Report, Window
from twinpool.simulator.scenario import SimulatedWorker
from twinpool.simulator.trace import TraceRequest

from .builders import GOAL, POWER, kind, outcome, scenario, steps


def test_an_empty_run_has_a_report():
    values = Report(scenario()).values()
    assert (values["requests"], values["slo_attainment"], values["duration_s"]) == (0, None, 0.0)
    assert values["itl_s"] == {"p50": None, "p90": None, "p99": None}


def test_the_report_has_the_keys_of_bench_serve_where_both_have_them():
    served = measures.summarise([measures.Outcome(measures.Ending.COMPLETED, 1, 0.0)], GOAL, 1.0, 2)
    own_to_serve = {"send_lag_s", "wall_s", "goal"}
    report = Report(scenario())
    assert set(served) - own_to_serve <= set(report.values())


def test_goodput_is_per_gpu_of_all_workers():
    report = Report(scenario(kind=kind(gpus=4)))
    report.ended(outcome())
    values = report.values()
    assert (values["duration_s"], values["gpus"]) == (1.5, 8)
    assert values["goodput_rps_per_gpu"] == pytest.approx(1 / 1.5 / 8)


def test_gaps_are_the_steps_of_each_sequence_and_the_handoffs():
    report = Report(scenario())
    report.ended(outcome(handoff_s=0.5, num_tokens=6, end_s=1.1))  # 0.02 a step
    report.stepped(steps(1, 1.0, 1.1, num_steps=5, batch=2))  # of another sequence, too
    itl = report.itl()
    assert itl.count == pytest.approx(10)
    assert itl.largest == pytest.approx(0.5 + 0.1 / 5)
    assert itl.percentiles()["p50"] == pytest.approx(0.02, rel=0.006)


def test_the_window_leaves_out_what_came_before_and_after():
    report = Report(scenario(), Window(1.0, 3.0))
    for at_s in (0.5, 1.0, 2.9, 3.0):
        offered = TraceRequest(at_s, 100, 11)
        report.ended(outcome(offered=offered, arrival_s=at_s, first_token_s=at_s + 0.5, end_s=at_s + 1.4))
    report.stepped(steps(0, 0.0, 2.0, prefill_tokens=1))
    values = report.values()
    assert (values["requests"], values["duration_s"], values["goodput_rps"]) == (2, 2.0, 1.0)
    assert values["utilisation"]["prefill"]["busy"] == pytest.approx(0.5)


def test_a_window_that_holds_nothing_is_refused():
    with pytest.raises(SpecError, match="--warmup and --cooldown"):
        Window(5.0, 5.0)


def test_transfers_are_summed_up():
    report = Report(scenario())
    report.transferred(Transfer(0, 0, 1, 1.0, 1.9, 1000, 0.4, 0.1))
    report.transferred(Transfer(1, 0, 1, 1.0, 1.6, 1000, 0.6, 0.0))
    told = report.values()["transfers"]
    assert (told["count"], told["bytes"]) == (2, 2000)
    assert (told["bytes_per_wire_s"], told["hidden_share"]) == (pytest.approx(2000), pytest.approx(0.9))


def test_classes_are_told_apart_and_add_up():
    report = Report(scenario())
    report.ended(outcome())
    report.ended(outcome(offered=TraceRequest(0.0, 100, 11, goal_class="batch")))
    values = report.values()
    assert sorted(values["by_class"]) == ["batch", "default"]
    assert sum(one["requests"] for one in values["by_class"].values()) == values["requests"]


def test_what_happened_to_workers_is_counted_until_the_last_request_has_ended():
    report = Report(scenario())
    report.ended(outcome(end_s=3.0))
    report.happened(1.0, 0, "crashed")
    report.happened(2.0, 0, "role decode")
    report.happened(3.0, 1, "role prefill")
    report.happened(3.1, 1, "crashed")
    assert report.values()["events"] == {"crashed": 1, "role": 2}


def test_queues_are_told_by_mean_and_peak():
    report = Report(scenario())
    report.gauged(Gauge(0.0, 2, 10, 300, 50))
    report.gauged(Gauge(1.0, 4, 10, 100, 50))
    assert report.values()["waiting"]["held"] == {"mean": 3.0, "max": 4.0}
    report.gauged(Gauge(5.0, 0, 0, 0, 50, num=4))
    assert report.values()["waiting"]["held"] == {"mean": 1.0, "max": 4.0}


def test_of_a_gauge_that_stands_for_many_only_those_in_the_window_count():
    report = Report(scenario(), Window(2.5, 5.5))
    report.gauged(Gauge(3.0, 6, 0, 0, 50))
    report.gauged(Gauge(9.0, 0, 0, 0, 50, num=8))  # at 2, 3, ... 9
    assert report.values()["waiting"]["held"] == {"mean": 1.5, "max": 6.0}


def test_energy_and_cost_are_there_where_they_are_known():
    assert Report(scenario()).values()["energy"] is None
    report = Report(scenario(kind=kind(power=POWER, price_per_hour=2.0)))
    report.ended(outcome())
    values = report.values()
    assert values["energy"]["mean_w"] == pytest.approx(200)
    assert values["cost"]["usd_per_hour"] == 4.0


def test_many_steps_change_nothing_but_the_sums():
    report = Report(scenario())
    for i in range(20_000):
        report.stepped(steps(1, i * 0.01, (i + 1) * 0.01, batch=1))
    report.ended(outcome(end_s=200.0, num_tokens=2))
    assert report.values()["utilisation"]["decode"]["busy"] == pytest.approx(1.0)
    assert len(report.over_time()["pools"]["decode"]["decode"]) <= 600


class Everything(Observer):
    """Keeps all that the report only sums up."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.steps: list[Steps] = []

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def stepped(self, steps: Steps) -> None:
        self.steps.append(steps)


@pytest.fixture(scope="module")
def run() -> tuple[Report, Everything]:
    """A simulated cluster of three workers under some load."""
    one = kind(num_blocks=1000)
    roles = (Role.PREFILL, Role.DECODE, Role.DECODE)
    workers = tuple(SimulatedWorker(f"{role}-{place}", role, one) for place, role in enumerate(roles))
    settings = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS)
    world = scenario(workers=workers, placement=settings)
    report, everything = Report(world), Everything()
    lengths = ((50 + 37 * i % 400, 2 + 13 * i % 60) for i in range(150))
    trace = [TraceRequest(i * 0.08, prompt, output) for i, (prompt, output) in enumerate(lengths)]
    simulate(world, trace, [report, everything])
    return report, everything


def test_percentiles_of_a_run_are_those_of_its_outcomes(run: tuple[Report, Everything]):
    report, everything = run
    values = report.values()
    assert values["completed"] == len(everything.outcomes) == 150
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        exact = [getattr(outcome, name) for outcome in everything.outcomes]
        for rank in (50, 90, 99):
            assert values[name][f"p{rank}"] == pytest.approx(np.percentile(exact, rank), rel=0.0051)


def test_busy_time_of_a_run_is_that_of_its_steps(run: tuple[Report, Everything]):
    report, everything = run
    for place, worker in enumerate(report.values()["by_worker"]):
        busy_s = sum(steps.ended_s - steps.started_s for steps in everything.steps if steps.worker == place)
        assert worker["busy"] * report.duration_s == pytest.approx(busy_s)


def test_time_on_the_wire_is_one_whether_requests_or_transfers_are_asked(run: tuple[Report, Everything]):
    report, everything = run
    told = report.values()["transfers"]
    for name in ("wire_s", "exposed_s"):
        assert told[name] == pytest.approx(sum(getattr(outcome, name) for outcome in everything.outcomes))
        assert told[name] == pytest.approx(report.values()["phases"][name]["mean"] * 150)
    assert told["hidden_share"] == pytest.approx(1 - told["exposed_s"] / told["wire_s"])
    assert all(0 <= outcome.exposed_s <= outcome.wire_s + 1e-9 for outcome in everything.outcomes)


def test_there_is_one_gap_for_each_token_but_the_first_and_gaps_take_as_long(run: tuple[Report, Everything]):
    report, everything = run
    itl = report.itl()
    assert itl.count == pytest.approx(sum(outcome.num_tokens - 1 for outcome in everything.outcomes))
    spent_s = sum(outcome.end_s - outcome.first_token_s for outcome in everything.outcomes)
    assert itl.sum == pytest.approx(spent_s, rel=0.03)
