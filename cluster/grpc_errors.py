"""The one table from Twinpool's errors to gRPC statuses with rich details (google.rpc.Status).

Knows no service; clients decode the same details in client/errors.py. What a status says beyond its code:
``BadRequest`` names the field, ``RetryInfo`` the wait, ``ResourceInfo`` the model, and ``ErrorInfo`` repeats the
error's class in ``reason`` and its arguments in ``metadata``.
"""

import logging
import re
import secrets
from typing import Any, Never

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from twinpool.core import errors

ERROR_DOMAIN = "twinpool"
MAX_TEXT_BYTES = 512  # of each text; trailing metadata over 8 KiB may cost the client the whole status

_log = logging.getLogger(__name__)

# What is absent here is internal and never shown: WorkerLost, TransferFailed, SpecError, Internal and foreign errors.
_CODES: dict[type[errors.TwinpoolError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.NoWorkers: grpc.StatusCode.UNAVAILABLE,
    errors.AttemptsExhausted: grpc.StatusCode.ABORTED,
    errors.Corrupted: grpc.StatusCode.DATA_LOSS,
}


async def abort(context: Any, error: BaseException) -> Never:
    """End the call of a grpc.aio ``context`` with the status of an error.

    Raises:
        grpc.aio.AbortError: always; the status has then been sent.
    """
    status = rpc_status.to_status(to_rich_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("context.abort always raises")


def to_rich_status(error: BaseException) -> status_pb2.Status:
    """Return the status a caller may see; for an internal error a fixed text and an incident id, logged with it."""
    code = _CODES.get(type(error)) if isinstance(error, errors.TwinpoolError) else None
    if code is None:
        return _internal(error)
    return status_pb2.Status(code=code.value[0], message=_short(str(error)), details=_packed(_details(error)))


def _internal(error: BaseException) -> status_pb2.Status:
    incident = secrets.token_hex(6)
    _log.error("internal error, incident %s", incident, exc_info=error)
    info = _info("INTERNAL", {"incident": incident})
    text = f"internal error; the server's log has it as incident {incident}"
    return status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=text, details=_packed([info]))


def _details(error: BaseException) -> list[Message]:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).upper()
    match error:
        case errors.InvalidRequest():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_short(error.field), description=_short(error.reason)
            )
            return [_info(name, {}), error_details_pb2.BadRequest(field_violations=[violation])]
        case errors.ModelNotFound():
            resource = error_details_pb2.ResourceInfo(resource_type="model", resource_name=_short(error.model))
            return [_info(name, {"served": ",".join(error.served)}), resource]
        case errors.Overloaded():
            of_tenant = {"tenant": error.tenant} if error.tenant else {}
            return [_info(name, {"reason": error.reason} | of_tenant), _retry(error.retry_after_s)]
        case errors.NoWorkers():
            return [_info(name, {"role": error.role}), _retry(error.retry_after_s)]
        case errors.DeadlineExceeded():
            return [_info(name, {"phase": error.phase})]
        case _:
            return [_info(name, {})]


def _info(reason: str, metadata: dict[str, str]) -> Message:
    short = {key: _short(value) for key, value in metadata.items()}
    info: Message = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=short)
    return info


def _retry(after_s: float) -> Message:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.SetInParent()
    info.retry_delay.FromNanoseconds(round(after_s * 1e9))
    retry: Message = info
    return retry


def _packed(details: list[Message]) -> list[any_pb2.Any]:
    packed = [any_pb2.Any() for _ in details]
    for holder, detail in zip(packed, details, strict=True):
        holder.Pack(detail)
    return packed


def _short(text: str) -> str:
    raw = text.encode("utf-8", "replace")  # a lone surrogate cannot travel
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    return raw[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."
