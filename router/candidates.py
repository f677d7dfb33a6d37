"""Which workers could take a request at all: live, with room, and allowed by the knobs.

Knows no preference among them but this: workers to avoid and workers that seem stuck are left out while others remain.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.router.demand import Demand
from twinpool.router.route import (
    Disaggregate,
    Hold,
    HoldReason,
    OnPrefillLoss,
    PlacementSettings,
    Policy,
    Reject,
    RejectReason,
)
from twinpool.router.views import ClusterView

Workers = NDArray[np.intp]  # indices into a view
Mask = NDArray[np.bool_]  # [N] over a view
Masks = tuple[Mask, Mask, Mask]  # of the three fields of `Candidates`


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Workers that could take the request now, by id.

    What `find_candidates` returns has a plan in it, or, when nothing is to be decoded, workers in ``prefill`` alone.
    """

    prefill: Workers  # to prefill for a decode worker, or alone
    decode: Workers  # to decode what another worker prefilled
    local: Workers  # to do both

    @property
    def has_plan(self) -> bool:
        """Whether a request with tokens to decode can go somewhere: a local plan, or a pair of different workers."""
        return len(self.local) > 0 or _has_pair(self.prefill, self.decode)


def find_candidates(demand: Demand, view: ClusterView, settings: PlacementSettings) -> Candidates | Hold | Reject:
    """Leave out what is impossible, and name the rule when nothing remains.

    A request too large for every worker that ever joined is refused at once; one that only lost or full workers could
    take is held.
    """
    if _is_too_large(demand, view):
        return Reject(RejectReason.TOO_LARGE)
    prefillers, decoders = view.roster.can_prefill, view.roster.can_decode
    if demand.peak_tokens > view.roster.least_tokens:  # not everybody's KV holds it
        prefillers = prefillers & (_blocks(demand.num_tokens, view) <= view.total_blocks)
        decoders = decoders & (_blocks(demand.peak_tokens, view) <= view.total_blocks)
    if demand.parked_on is not None:
        prefillers = np.array([worker_id == demand.parked_on for worker_id in view.worker_ids], np.bool_)
    elif _fails_without_prefill(settings) and not _any(prefillers):
        return Reject(RejectReason.NO_PREFILL_WORKERS)
    if demand.decodes:
        return _to_decode(demand, view, settings, prefillers, decoders)
    return _to_prefill_only(demand, view, settings, prefillers, decoders)


def _to_prefill_only(
    demand: Demand, view: ClusterView, settings: PlacementSettings, prefillers: Mask, decoders: Mask
) -> Candidates | Hold:
    never = settings.disaggregate == Disaggregate.NEVER
    able = decoders if (never and _any(decoders)) or not _any(prefillers) else prefillers
    if not _any(able):
        return Hold(HoldReason.NO_WORKERS)
    able = able & _has_short_queue(demand, view, settings)
    if not _any(able):
        return Hold(HoldReason.PREFILL_QUEUE)
    nobody = np.zeros_like(able)
    return _candidates(_preferred((able, nobody, nobody), demand, view, settings))


def _to_decode(
    demand: Demand, view: ClusterView, settings: PlacementSettings, prefillers: Mask, decoders: Mask
) -> Candidates | Hold:
    if not _any(decoders):
        return Hold(HoldReason.NO_DECODE_WORKERS)
    roomy = decoders & _has_room(demand, view)
    if not _any(roomy):
        return Hold(HoldReason.DECODE_BLOCKS)
    to_pair, to_localise = _allowed(demand, settings, view, prefillers, decoders)
    is_short = _has_short_queue(demand, view, settings)
    may_prefill = prefillers & is_short & to_pair
    masks = (may_prefill, roomy, roomy & is_short & to_localise)
    preferred = _preferred(masks, demand, view, settings)
    found = _candidates(preferred)
    if not found.has_plan and preferred is not masks:
        found = _candidates(masks)
    if found.has_plan:
        return found
    return Hold(HoldReason.DECODE_BLOCKS if _any(may_prefill) else HoldReason.PREFILL_QUEUE)


def _candidates(masks: Masks) -> Candidates:
    prefill, decode, local = masks
    return Candidates(prefill.nonzero()[0], decode.nonzero()[0], local.nonzero()[0])


def _allowed(
    demand: Demand, settings: PlacementSettings, view: ClusterView, prefillers: Mask, decoders: Mask
) -> tuple[Mask | bool, Mask | bool]:
    """By the knobs alone: (workers that may prefill for another, workers that may serve a local plan)."""
    if demand.parked_on is not None:
        return True, False
    match settings.disaggregate:
        case Disaggregate.NEVER:
            return False, True
        case Disaggregate.ALWAYS:
            return True, not _has_pair(prefillers.nonzero()[0], decoders.nonzero()[0])
        case Disaggregate.WHEN_CHEAPER:
            return True if settings.policy == Policy.SLO else ~view.decodes, True


def _is_too_large(demand: Demand, view: ClusterView) -> bool:
    most_tokens = view.roster.most_decode_tokens if demand.decodes else view.roster.most_tokens
    return most_tokens >= 0 and bool(view.worker_ids) and demand.peak_tokens > most_tokens


def _fails_without_prefill(settings: PlacementSettings) -> bool:
    return settings.on_prefill_loss == OnPrefillLoss.FAIL and settings.disaggregate != Disaggregate.NEVER


def _blocks(num_tokens: int, view: ClusterView) -> NDArray[np.int64] | int:
    """[N], or one number where all workers' blocks are of one size."""
    size = view.roster.same_block_tokens
    return -(-num_tokens // (size or view.block_tokens))


def _has_room(demand: Demand, view: ClusterView) -> Mask:
    """Whether the whole answer fits above the forecast of what runs and the promises to what will."""
    return view.peak_blocks + view.reserved_blocks + _blocks(demand.peak_tokens, view) <= view.total_blocks


def _has_short_queue(demand: Demand, view: ClusterView, settings: PlacementSettings) -> Mask | bool:
    """Splitwise's bound: an empty queue takes any prompt, another what keeps it short. Parked KV does not queue."""
    if demand.parked_on is not None:
        return True
    waiting = view.waiting_prefill_tokens
    limit = settings.max_waiting_prefill_tokens - demand.num_tokens
    short: Mask = waiting <= max(limit, 0)  # an empty queue is always short
    return short


def _preferred(masks: Masks, demand: Demand, view: ClusterView, settings: PlacementSettings) -> Masks:
    """Leave out workers to avoid and stuck ones, each as long as another is able. As they are where there are none.

    A worker that decodes speaks with every step; an idle one has nothing to say and is welcome.
    """
    if demand.avoid:
        masks = _without(masks, np.array([worker_id in demand.avoid for worker_id in view.worker_ids], np.bool_))
    is_late = view.age_s > settings.stale_s
    if _any(is_late):
        masks = _without(masks, is_late & (view.running > 0))
    return masks


def _without(masks: Masks, unwanted: Mask) -> Masks:
    """Each mask without the unwanted, unless nobody would be left in it."""
    prefill, decode, local = (able & ~unwanted if _any(able & ~unwanted) else able for able in masks)
    return prefill, decode, local


def _any(mask: Mask) -> bool:
    """As ``mask.any()``, several times faster where there are few workers."""
    return bool(np.count_nonzero(mask))


def _has_pair(prefill: Workers, decode: Workers) -> bool:
    """Whether two different workers can be taken, one from each."""
    return bool(len(prefill) and len(decode) and (len(prefill) > 1 or len(decode) > 1 or prefill[0] != decode[0]))
