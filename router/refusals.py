"""The errors that end requests which found no place, from the router's reasons.

Knows no request and decides nothing.
"""

from typing import assert_never

from twinpool.core.errors import DeadlineExceeded, InvalidRequest, NoWorkers, Overloaded, TwinpoolError
from twinpool.router.admission import RefusalReason, Refused
from twinpool.router.route import HoldReason, RejectReason
from twinpool.router.tenants import OverRate

_NO_WORKERS = {HoldReason.NO_WORKERS: "serving", HoldReason.NO_DECODE_WORKERS: "decode"}
_RETRY_AFTER_S = 1.0


def refusal(refused: Refused) -> TwinpoolError:
    """Of requests that may not even wait."""
    if refused.reason is RefusalReason.DEADLINE:
        return DeadlineExceeded("waiting for a worker")
    return Overloaded(refused.reason.format(refused.tenant), refused.retry_after_s, refused.tenant)


def over_rate(over: OverRate) -> TwinpoolError:
    """Of requests whose tenant has had its tokens."""
    return Overloaded(over.reason, over.retry_after_s, over.tenant)


def expiry(held_for: HoldReason, *, is_late: bool) -> TwinpoolError:
    """Of a request that waited too long; ``is_late``: for its client, not only for us."""
    if is_late:
        return DeadlineExceeded("waiting for a worker")
    role = _NO_WORKERS.get(held_for)
    return NoWorkers(role) if role else Overloaded(str(held_for), _RETRY_AFTER_S)


def rejection(reason: RejectReason) -> TwinpoolError:
    """Of a request that no worker will ever take."""
    match reason:
        case RejectReason.TOO_LARGE:
            return InvalidRequest("prompt", str(reason))
        case RejectReason.NO_PREFILL_WORKERS:
            return NoWorkers("prefill")
        case RejectReason.DEADLINE:
            return DeadlineExceeded("waiting for a worker")
        case _:
            assert_never(reason)
