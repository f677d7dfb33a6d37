"""Turns what gRPC reports back into the error classes of core/errors.py.

Reads the details that cluster/grpc_errors.py writes, and makes do without them: between a client and a gateway there
may be a proxy, or something at the address that is no gateway.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from twinpool.core import errors
from twinpool.core.called import as_called
from twinpool.core.errors import TwinpoolError

_DETAILS_KEY = "grpc-status-details-bin"
_RETRY_AFTER_S = 1.0  # where the server does not say


class ConnectionFailed(TwinpoolError):  # named as its siblings in core/errors.py
    """No gateway could be reached at ``address``, or the connection to it broke."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"no connection to a Twinpool gateway at {address}: {reason}")
        self.address = address
        self.reason = reason


def error_from_rpc(error: Any, address: str, phase: str) -> TwinpoolError:
    """Return the error that a failed call means.

    Args:
        error: a ``grpc.RpcError`` of a call that ended, sync or aio.
        address: where the call went, for the text.
        phase: what the caller was waiting for, used when a deadline passed and the server said nothing of it.
    """
    code, text, details = error.code(), error.details() or "", _Details(error)
    status = grpc.StatusCode
    if code is status.INVALID_ARGUMENT:
        return _invalid_request(text, details)
    if code is status.NOT_FOUND and details.resource_name:
        served = details.metadata.get("served", "")
        return errors.ModelNotFound(details.resource_name, tuple(served.split(",")) if served else ())
    if code is status.RESOURCE_EXHAUSTED:
        if "larger than max" in text:  # gRPC's own refusal, before the gateway saw the request: waiting does not help
            return errors.InvalidRequest("request", text)
        metadata = details.metadata
        return errors.Overloaded(metadata.get("reason", text), details.retry_after_s, metadata.get("tenant", ""))
    if code is status.UNAVAILABLE:
        if "role" in details.metadata:
            return errors.NoWorkers(details.metadata["role"], details.retry_after_s)
        return ConnectionFailed(address, text)
    if code is status.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(details.metadata.get("phase", phase))
    if code is status.UNIMPLEMENTED:
        return errors.Internal(f"what listens at {address} is no Twinpool gateway, or another version: {text}")
    if code in _PLAIN:
        return _PLAIN[code](text)
    return errors.Internal(text if code is status.INTERNAL else f"{code.name}: {text}")


class Unreachable:
    """Gathers why addresses were unavailable, while others are still to be tried."""

    def __init__(self) -> None:
        self._errors: list[TwinpoolError] = []

    def add(self, error: TwinpoolError) -> None:
        """Note one address's failure; raise it when it is a refusal that other addresses would repeat."""
        if not isinstance(error, ConnectionFailed | errors.NoWorkers):
            raise error
        self._errors.append(error)

    def summary(self) -> TwinpoolError:
        """Return one error for all: a gateway's own answer if there was any, else every address with its reason."""
        connections = [error for error in self._errors if isinstance(error, ConnectionFailed)]
        answers = [error for error in self._errors if not isinstance(error, ConnectionFailed)]
        if answers or len(connections) == 1:
            return (answers or connections)[0]
        addresses = ", ".join(error.address for error in connections)
        return ConnectionFailed(addresses, "; ".join(error.reason for error in connections))


_PLAIN: dict[grpc.StatusCode, type[TwinpoolError]] = {
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.ABORTED: errors.AttemptsExhausted,
    grpc.StatusCode.DATA_LOSS: errors.Corrupted,
}


def _invalid_request(text: str, details: "_Details") -> errors.InvalidRequest:
    for violation in details.violations:
        return errors.InvalidRequest(as_called(violation.field), violation.description)
    return errors.InvalidRequest("request", text)


class _Details:
    """The rich details of a status that this client understands; empty where there are none."""

    def __init__(self, error: Any) -> None:
        self._details: list[Any] = []
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS_KEY:
                self._details = _parse_details(value)

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self._find(error_details_pb2.ErrorInfo).metadata)

    @property
    def violations(self) -> list[Any]:
        return list(self._find(error_details_pb2.BadRequest).field_violations)

    @property
    def resource_name(self) -> str:
        return str(self._find(error_details_pb2.ResourceInfo).resource_name)

    @property
    def retry_after_s(self) -> float:
        info = self._find(error_details_pb2.RetryInfo)
        if not info.HasField("retry_delay"):
            return _RETRY_AFTER_S
        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)

    def _find(self, kind: type[Message]) -> Any:
        found = kind()
        for detail in self._details:
            if detail.Is(kind.DESCRIPTOR):
                try:
                    detail.Unpack(found)
                except DecodeError:  # a proxy's mistake must not hide the status itself
                    return kind()
        return found


def _parse_details(data: bytes) -> list[Any]:
    try:
        return list(status_pb2.Status.FromString(data).details)
    except DecodeError:  # a proxy's mistake must not hide the status itself
        return []
