"""Runs a trace through the simulator, under the very YAML that the live cluster has, and finds the cluster's knee.

Knows the simulator; no live cluster.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from twinpool.cluster.bench.parity_numbers import Values, numbers_of
from twinpool.core.errors import SpecError
from twinpool.core.spec import ClusterSpec
from twinpool.router.latency_profile import LatencyProfile
from twinpool.simulator.cluster import simulate
from twinpool.simulator.from_spec import ScenarioOptions, scenario_of
from twinpool.simulator.observer import Observer
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.rate_search import search_rate
from twinpool.simulator.scenario import Scenario
from twinpool.simulator.trace import TraceRequest

KNEE_ATTAINMENT = 0.9
KNEE_PRECISION = 0.05
LOWEST_RPS, HIGHEST_RPS = 0.1, 1000.0


class Outcomes(Observer):
    """Keeps what became of every request."""

    def __init__(self) -> None:
        self.found: list[Outcome] = []

    def ended(self, outcome: Outcome) -> None:
        self.found.append(outcome)


def make_scenario(spec: ClusterSpec, profile: LatencyProfile, seed: int) -> Scenario:
    """The cluster as the profile has it; its gateways believe what the profile says, as the live ones are told to."""
    return scenario_of(spec, ScenarioOptions(profile=profile, seed=seed))


def run_simulated(scenario: Scenario, trace: Sequence[TraceRequest], client_s: float) -> Values:
    """What the trace's clients would see; ``client_s`` is one message's way between a client and its gateway."""
    outcomes = Outcomes()
    simulate(scenario, trace, (outcomes,))
    seen = [_as_client(outcome, client_s) for outcome in outcomes.found]
    done = [outcome for outcome in seen if outcome.ending is Ending.COMPLETED]
    numbers = numbers_of(
        [outcome.ttft_s for outcome in done],
        [outcome.tpot_s for outcome in done],
        sum(outcome.met for outcome in seen),
        len(seen),
    )
    return numbers | {"completed": len(done)}


def _as_client(outcome: Outcome, client_s: float) -> Outcome:
    """The world's times are a gateway's: a client sends earlier, and hears later."""
    first_s = None if outcome.first_token_s is None else outcome.first_token_s + client_s
    return replace(
        outcome, arrival_s=outcome.arrival_s - client_s, first_token_s=first_s, end_s=outcome.end_s + client_s
    )


def find_knee(scenario: Scenario, draw: Callable[[float], Sequence[TraceRequest]]) -> float:
    """The largest rate at which 90 % of the requests meet their goals.

    Raises:
        SpecError: not even the lowest rate does, or the highest does too.
    """

    def attain(rate_rps: float) -> list[tuple[float, Values]]:
        numbers = run_simulated(scenario, draw(rate_rps), 0.0)
        return [(numbers["slo_attainment"], numbers)]

    found = search_rate(attain, LOWEST_RPS, HIGHEST_RPS, KNEE_ATTAINMENT, precision=KNEE_PRECISION, num_bracket=14)
    if found.rate_rps is None or not found.is_bounded:
        raise SpecError(
            f"no knee between {LOWEST_RPS:g} and {HIGHEST_RPS:g} requests/s: the goals do not fit the model"
        )
    return found.rate_rps
