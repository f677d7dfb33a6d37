"""What placement decides, and the knobs it has: the values that router and gateway share.

Knows no worker's load and decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from twinpool.router.estimate import LatencyModel


class Policy(StrEnum):
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    PREFIX_AWARE = "prefix_aware"
    SLO = "slo"

    @property
    def uses_prefixes(self) -> bool:
        """Whether it looks at what workers have cached, so that they have to be asked."""
        return self in (Policy.PREFIX_AWARE, Policy.SLO)


class Disaggregate(StrEnum):
    """Whether prefill and decode go to different workers.

    Only `slo` prices plans; to the other policies `when_cheaper` means: while a worker for prefill alone can take it.
    """

    ALWAYS = "always"
    WHEN_CHEAPER = "when_cheaper"
    NEVER = "never"


class OnPrefillLoss(StrEnum):
    """What follows when no worker for prefill is live."""

    LOCAL = "local"
    FAIL = "fail"


class HoldReason(StrEnum):
    """Why a request waits in the router; each may pass by itself."""

    NO_WORKERS = "no worker is ready"
    NO_DECODE_WORKERS = "no decode worker is ready"
    DECODE_BLOCKS = "no decode worker has blocks for the whole answer"
    PREFILL_QUEUE = "the prefill workers' queues are full"

    @property
    def is_of_room(self) -> bool:
        """Whether it passes with a change of the workers only, and for whoever needs more not before."""
        return self in (HoldReason.NO_WORKERS, HoldReason.NO_DECODE_WORKERS, *_CONTESTED)

    @property
    def is_contested(self) -> bool:
        """Whether requests that go first take what is lacking; a worker that is not there, nobody can take."""
        return self in _CONTESTED


_CONTESTED = (HoldReason.DECODE_BLOCKS, HoldReason.PREFILL_QUEUE)


class RejectReason(StrEnum):
    """Why a request is refused at once."""

    TOO_LARGE = "the request needs more KV blocks than any worker has"
    NO_PREFILL_WORKERS = "no prefill worker is ready, and on_prefill_loss is fail"
    DEADLINE = "its deadline cannot be met any more"


@dataclass(frozen=True, slots=True)
class Route:
    """Prefill here, decode there. ``decode`` is ``prefill`` for a local plan, and None when no token is left to decode.

    Only a disaggregated plan reserves a decode worker and has a handoff.
    """

    prefill: str
    decode: str | None
    why: str
    cached_tokens: int = 0  # of those to prefill, what the prefill worker is thought to hold already

    @property
    def is_disaggregated(self) -> bool:
        return self.decode is not None and self.decode != self.prefill

    @property
    def workers(self) -> tuple[str, ...]:
        """The one or two workers involved."""
        return (self.prefill, self.decode) if self.decode is not None and self.is_disaggregated else (self.prefill,)


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the request in the router's queue and ask again when the view has changed."""

    reason: HoldReason


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the request now."""

    reason: RejectReason


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """The knobs under `router:` of the cluster YAML, and what predictions are made from."""

    policy: Policy = Policy.SLO
    disaggregate: Disaggregate = Disaggregate.WHEN_CHEAPER
    on_prefill_loss: OnPrefillLoss = OnPrefillLoss.LOCAL
    latency: LatencyModel = field(default_factory=LatencyModel)  # of workers whose kind is not in latencies
    latencies: Mapping[str, LatencyModel] = field(default_factory=dict)  # by WorkerView.kind
    mixed_pool: bool = False  # lend workers of the other role where one role is full (see mixed_pool.py)
    max_waiting_prefill_tokens: int = 32_768  # per worker; what is beyond waits in the router and can still choose
    overlap_weight: float = 1.0  # of prefix_aware: a block to compute or to send, against one that a worker keeps
    stale_s: float = 5.0  # a decoding worker silent for longer is used only when no other will do
