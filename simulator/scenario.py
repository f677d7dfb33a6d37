"""All that a simulated run depends on beside its trace: workers, links, knobs, goals, faults, noise and the seed.

Values only; cluster.py runs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal, Role
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import StepForm
from twinpool.router.power import PowerForm
from twinpool.router.route import PlacementSettings
from twinpool.router.standing import OnMiss


class PrefixCache(StrEnum):
    """What simulated block pools know of content."""

    OFF = "off"  # blocks are counts; nothing is shared
    HASHES = "hashes"  # prompts that begin alike, by the trace's hashes, share blocks


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """Workers of one hardware, model and shape. ``truth`` is how long steps take; the router starts from its belief.

    The belief is in PlacementSettings.latencies under the same name.
    """

    name: str
    truth: StepForm
    kv_token_bytes: int  # over all ranks of the worker
    num_blocks: int
    block_tokens: int
    gpus: int = 1
    nic_bytes_per_s: float = 5e9  # each way, shared by all handoffs of the worker
    link_latency_s: float = 1e-3  # of one handoff, beside its bytes
    layer_groups: int = 8  # that a step's KV leaves in
    send_s: float = 0.0  # by which the last step of a prompt that is handed over is longer
    join_s: float = 0.0  # by which the first step of each sequence that arrived by a handoff is longer
    power: PowerForm | None = None
    price_per_hour: float = 0.0  # of the whole worker


@dataclass(frozen=True, slots=True)
class SimulatedWorker:
    """One worker. Workers of one ``node`` share its network card."""

    worker_id: str
    role: Role
    kind: WorkerKind
    node: str = ""  # empty: a node of its own
    speed: float = 1.0  # its steps take truth / speed: for workers that the router's belief does not fit


@dataclass(frozen=True, slots=True)
class GoalClass:
    """Goals and standing of one class of requests."""

    goal: Goal
    priority: int = 0  # smaller goes first
    deadline_s: float | None = None  # from arrival to the first token: a request that cannot make it never starts
    on_miss: OnMiss = OnMiss.BEST_EFFORT


class FaultKind(StrEnum):
    CRASH = "crash"  # the worker's process dies, with all it holds
    DRAIN = "drain"  # it takes nothing new
    SLOW = "slow"  # its steps take ``factor`` times as long


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that befalls one worker. A crashed worker is started again as router/health.py decides."""

    kind: FaultKind
    worker_id: str
    at_s: float
    duration_s: float = float("inf")  # of slowness or draining
    factor: float = 2.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One cluster under one set of knobs."""

    workers: tuple[SimulatedWorker, ...]
    goals: Mapping[str, GoalClass]  # "default" is there
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    num_gateways: int = 1
    message_s: float = 5e-4  # one way, between any two processes
    start_s: float = 20.0  # of a worker's process after a crash
    chunk_tokens: int = 512
    max_running: int = 256
    parked_share: float = 0.3
    prefix_cache: PrefixCache = PrefixCache.OFF
    hash_tokens: int = 512  # of the pieces that a trace's hashes name
    step_noise: float = 0.0  # sigma of the lognormal, of mean 1, that each step's time is multiplied by
    max_attempts: int = 3
    faults: tuple[Fault, ...] = ()
    seed: int = 0

    @property
    def shares_prefixes(self) -> bool:
        return self.prefix_cache is PrefixCache.HASHES

    @property
    def tells_caches(self) -> bool:
        """Whether workers tell gateways what they have cached."""
        return self.shares_prefixes and self.placement.policy.uses_prefixes

    def piece_blocks(self, kind: WorkerKind) -> int:
        """Blocks of one piece of a prompt that may be shared; 0 where nothing is.

        Raises:
            SpecError: blocks are not a whole part of the trace's pieces.
        """
        if self.prefix_cache is PrefixCache.OFF:
            return 0
        if self.hash_tokens % kind.block_tokens:
            raise SpecError(
                f"kv.block_tokens: the trace names pieces of {self.hash_tokens} tokens, which blocks of "
                f"{kind.block_tokens} do not divide"
            )
        return self.hash_tokens // kind.block_tokens
