"""What may follow a failure of one attempt, and whom the next attempt should rather avoid.

Knows no request's state; the ledger decides which of these it is.
"""

from dataclasses import dataclass
from typing import assert_never

from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import FailureKind, Request
from twinpool.router.route import Route


@dataclass(frozen=True, slots=True)
class Retry:
    """Cancel the request at ``release`` (those still live), then place ``request`` anew, rather not on ``avoid``."""

    request: Request
    avoid: frozenset[str]
    release: tuple[str, ...]
    kind: FailureKind

    @property
    def request_id(self) -> str:
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class Retarget:
    """Cancel at ``release``, then choose another decode worker for the KV that ``parked_on`` holds."""

    request: Request
    parked_on: str
    avoid: frozenset[str]
    release: tuple[str, ...]

    @property
    def request_id(self) -> str:
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request has ended with ``error``. Cancel it at ``release`` and tell the client."""

    request_id: str
    error: TwinpoolError
    release: tuple[str, ...]


Decision = Retry | Retarget | GiveUp


def culprits_of(route: Route, kind: FailureKind, from_worker: str) -> frozenset[str]:
    """Whom the next attempt should rather avoid."""
    match kind:
        case FailureKind.PREEMPTED | FailureKind.UNANSWERABLE:
            return frozenset()
        case FailureKind.TRANSFER_FAILED | FailureKind.PEER_LOST:
            return frozenset(route.workers) - {from_worker}
        case FailureKind.CORRUPTED:
            return frozenset(route.workers)
        case FailureKind.WORKER_LOST | FailureKind.INTERNAL:
            return frozenset({from_worker})
        case _:
            assert_never(kind)
