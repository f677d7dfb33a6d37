"""What `twinpool bench simulator` runs: clusters, loads and how long requests are.

Knows which numbers were published; runs and measures nothing.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinpool.cluster.profile_file import read_profile_csv
from twinpool.core.messages import Goal, Role
from twinpool.router.estimate import LatencyModel, LinkCost, StepForm
from twinpool.router.hardware import GPUS
from twinpool.router.latency_table import original_rule_form
from twinpool.router.roofline import DISTSERVE_A100, SPLITWISE_A100, ModelSize, kv_capacity_tokens, roofline_form
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.scenario import GoalClass, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.trace import Trace, TraceRequest
from twinpool.simulator.traces.arrivals import Process
from twinpool.simulator.traces.open import TraceOptions, open_trace

A100 = GPUS["A100-80GB"]
BLOOM = ModelSize(70, 14_336, 112, 112, 128, 57_344, 250_880, mlp_matrices=2)
LLAMA_8B = ModelSize(32, 4096, 32, 8, 128, 14_336, 128_256)
TP = 8  # of BLOOM's machines, of eight GPUs
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class LengthForm:
    """Lognormal lengths of a mean and a standard deviation, cut at the longest that was seen."""

    mean: float
    deviation: float
    most: int

    def draw(self, rng: random.Random) -> int:
        variance = math.log1p((self.deviation / self.mean) ** 2)
        tokens = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(self.most, max(1, round(tokens)))


# Azure's conversation trace of 2023 as released: mean, standard deviation and maximum of 19,366 requests.
AZURE_PROMPTS = LengthForm(1154.7, 1108.8, 14_050)
AZURE_ANSWERS = LengthForm(211.1, 162.9, 1000)
DRAWN = "lognormal, of the published means and deviations of Azure's conversation trace"


@dataclass(frozen=True, slots=True)
class Case:
    """One run: so many requests on so many workers. Of the two kinds of cluster below."""

    workload: str
    prefill_workers: int
    decode_workers: int
    rate_rps: float
    requests: int
    is_splitwise: bool = False
    lengths: str | None = None  # a file to draw them from
    perf_model: str | None = None  # a file that says how fast BLOOM is
    seed: int = 0

    @property
    def workers(self) -> int:
        return self.prefill_workers + self.decode_workers

    def scenario(self) -> Scenario:
        """Its cluster.

        Raises:
            SpecError: what ``perf_model`` names cannot be read.
        """
        return _splitwise(self) if self.is_splitwise else _fleet(self)

    def trace(self) -> Trace:
        """Its requests. Clients' limits are the answers' lengths in Splitwise's runs, which know them, else 1,024.

        Raises:
            SpecError: what ``lengths`` names cannot be read.
        """
        max_tokens = 0 if self.is_splitwise else 1024
        if self.lengths is None:
            return _drawn(self, max_tokens)
        options = TraceOptions(
            rate_rps=self.rate_rps,
            requests=self.requests,
            arrivals=Process.POISSON,
            independent=True,
            max_tokens=max_tokens,
            seed=self.seed,
        )
        return open_trace(Path(self.lengths), options)


def _drawn(case: Case, max_tokens: int) -> Iterator[TraceRequest]:
    """Poisson arrivals of drawn lengths."""
    rng, at_s = random.Random(case.seed), 0.0
    for _ in range(case.requests):
        at_s += rng.expovariate(case.rate_rps)
        yield TraceRequest(at_s, AZURE_PROMPTS.draw(rng), AZURE_ANSWERS.draw(rng), max_tokens)


def _splitwise(case: Case) -> Scenario:
    """BLOOM-176B on machines of eight A100, as Splitwise's evaluation has them (ISCA'24, section V and VI).

    Its cluster-level scheduler with the mixed pool, 2,048 prompt tokens a step, up to 512 sequences, and all memory
    beside the weights for KV.
    """
    steps: StepForm
    if case.perf_model is None:
        steps = roofline_form(BLOOM, A100, TP, efficiency=SPLITWISE_A100)
    else:
        steps = original_rule_form(read_profile_csv(case.perf_model, "bloom-176b", "a100-80gb", TP))
    room_bytes = TP * A100.memory_bytes - BLOOM.weight_bytes
    nic_bytes_per_s = TP * (A100.nic_bytes_per_s or 0.0)
    kind = WorkerKind(
        name="a100-tp8",
        truth=steps,
        kv_token_bytes=BLOOM.kv_token_bytes,
        num_blocks=room_bytes // (BLOOM.kv_token_bytes * BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
        gpus=TP,
        nic_bytes_per_s=nic_bytes_per_s,
    )
    belief = LatencyModel(steps, LinkCost(kind.link_latency_s, nic_bytes_per_s), kind.kv_token_bytes, 2048)
    placement = PlacementSettings(
        policy=Policy.LEAST_LOADED,
        disaggregate=Disaggregate.WHEN_CHEAPER,
        latencies={kind.name: belief},
        mixed_pool=True,
        max_waiting_prefill_tokens=8192,
    )
    return Scenario(
        _workers(case, kind),
        {"default": GoalClass(Goal(ttft_s=2.0, tpot_s=0.125))},
        placement,
        chunk_tokens=2048,
        max_running=512,
        seed=case.seed,
    )


def _fleet(case: Case) -> Scenario:
    """Llama-3-8B, a worker on each A100, placed by predicted goals."""
    steps = roofline_form(LLAMA_8B, A100, efficiency=DISTSERVE_A100)
    kind = WorkerKind(
        name="a100",
        truth=steps,
        kv_token_bytes=LLAMA_8B.kv_token_bytes,
        num_blocks=kv_capacity_tokens(LLAMA_8B, A100) // BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        nic_bytes_per_s=A100.nic_bytes_per_s or 0.0,
    )
    belief = LatencyModel(steps, LinkCost(kind.link_latency_s, kind.nic_bytes_per_s), kind.kv_token_bytes, 2048)
    placement = PlacementSettings(policy=Policy.SLO, latencies={kind.name: belief})
    goals = {"default": GoalClass(Goal(ttft_s=1.0, tpot_s=0.05))}
    return Scenario(_workers(case, kind), goals, placement, chunk_tokens=2048, seed=case.seed)


def _workers(case: Case, kind: WorkerKind) -> tuple[SimulatedWorker, ...]:
    prefill = [SimulatedWorker(f"prefill-{i:04}", Role.PREFILL, kind) for i in range(case.prefill_workers)]
    decode = [SimulatedWorker(f"decode-{i:04}", Role.DECODE, kind) for i in range(case.decode_workers)]
    return (*prefill, *decode)
