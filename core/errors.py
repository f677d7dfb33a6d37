"""What can go wrong for a caller: one class for each thing a caller would do differently.

::

    TwinpoolError
    ├── InvalidRequest(field)        the request can never succeed: fix it
    ├── ModelNotFound                another name would succeed
    ├── Unauthenticated / Forbidden  another identity might succeed
    ├── Overloaded(retry_after_s)    later would succeed
    ├── NoWorkers(role)              later might succeed
    ├── DeadlineExceeded(phase)      the caller's own limit
    ├── Cancelled                    the caller asked for it
    ├── WorkerLost, TransferFailed   internal: retried, never shown to callers
    ├── Corrupted                    a digest failed twice
    ├── AttemptsExhausted            never retried by clients
    ├── Internal                     a bug of ours
    └── SpecError                    start fails: one line, exit code 2

Knows nothing of gRPC or HTTP; cluster/ maps these in one file each.
"""

from collections.abc import Callable, Mapping
from typing import Any


class TwinpoolError(Exception):
    """Base of every error that Twinpool raises on purpose. Survives the way from one of our processes to another."""

    def __reduce__(self) -> tuple[Callable[..., "TwinpoolError"], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, vars(self))


def _rebuild(error_class: type[TwinpoolError], args: tuple[Any, ...], fields: Mapping[str, Any]) -> TwinpoolError:
    error = error_class.__new__(error_class)
    error.args = args
    vars(error).update(fields)
    return error


class InvalidRequest(TwinpoolError):
    """A field of the request is wrong; ``field`` is its dotted path as the caller spells it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ModelNotFound(TwinpoolError):
    """The cluster does not serve this model."""

    def __init__(self, model: str, served: tuple[str, ...]) -> None:
        super().__init__(f"model {model!r} is not served here; served: {', '.join(served)}")
        self.model = model
        self.served = served


class Unauthenticated(TwinpoolError):
    """No credentials, or none that are known."""


class Forbidden(TwinpoolError):
    """Known credentials that do not allow this."""


class Overloaded(TwinpoolError):
    """Refused early, because accepting would miss goals; ``reason`` names the rule that refused.

    ``tenant`` is set where it is this tenant's own limit: others are served meanwhile.
    """

    def __init__(self, reason: str, retry_after_s: float, tenant: str = "") -> None:
        super().__init__(f"overloaded: {reason}; retry after {retry_after_s:.3g} s")
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.tenant = tenant


class NoWorkers(TwinpoolError):
    """No live worker can take this role now."""

    def __init__(self, role: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"no {role} worker is ready; retry after {retry_after_s:.3g} s")
        self.role = role
        self.retry_after_s = retry_after_s


class DeadlineExceeded(TwinpoolError):
    """The caller's deadline passed while the request was in ``phase``."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"deadline exceeded while {phase}")
        self.phase = phase


class Cancelled(TwinpoolError):
    """The caller cancelled the request."""


class WorkerLost(TwinpoolError):
    """A worker died with the request on it. Internal: the ledger dispatches the request again."""


class TransferFailed(TwinpoolError):
    """A handoff failed and its source holds the KV. Internal: the ledger names another target."""


class Corrupted(TwinpoolError):
    """KV failed its digest twice."""


class AttemptsExhausted(TwinpoolError):
    """The request was tried as often as allowed; the last failure is in the text."""


class Internal(TwinpoolError):
    """A bug of ours, with what is known about it."""


class SpecError(TwinpoolError):
    """A cluster cannot start as described. ``str()`` is one line per problem: ``where: what``."""
