"""Every error has the status and the details of the table, and no internal text leaves the server."""

import logging

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from twinpool.cluster.grpc_errors import MAX_TEXT_BYTES, to_rich_status
from twinpool.core import errors


def unpack(status: status_pb2.Status, kind: type[Message]) -> Message:
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            return message
    raise AssertionError(f"no {kind.__name__} among {status.details}")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("sampling.n", "no"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFound("x", ("tiny",)), grpc.StatusCode.NOT_FOUND),
        (errors.Unauthenticated("who"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.Forbidden("not you"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.Overloaded("queue", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlineExceeded("decoding"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.Cancelled("bye"), grpc.StatusCode.CANCELLED),
        (errors.NoWorkers("decode"), grpc.StatusCode.UNAVAILABLE),
        (errors.AttemptsExhausted("3 times"), grpc.StatusCode.ABORTED),
        (errors.Corrupted("digest"), grpc.StatusCode.DATA_LOSS),
    ],
)
def test_an_error_for_callers_keeps_its_text_and_has_the_code_of_the_table(
    error: errors.TwinpoolError, code: grpc.StatusCode
) -> None:
    status = to_rich_status(error)
    assert (status.code, status.message) == (code.value[0], str(error))


def test_details_name_the_field_the_wait_the_model_and_the_phase() -> None:
    violation = unpack(to_rich_status(errors.InvalidRequest("goal.ttft_s", "bad")), error_details_pb2.BadRequest)
    assert violation.field_violations[0].field == "goal.ttft_s"  # type: ignore[attr-defined]
    retry = unpack(to_rich_status(errors.Overloaded("queue", 2.5)), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 2500  # type: ignore[attr-defined]
    model = unpack(to_rich_status(errors.ModelNotFound("x", ())), error_details_pb2.ResourceInfo)
    assert model.resource_name == "x"  # type: ignore[attr-defined]
    info = unpack(to_rich_status(errors.DeadlineExceeded("queued")), error_details_pb2.ErrorInfo)
    assert (info.reason, info.metadata["phase"]) == ("DEADLINE_EXCEEDED", "queued")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        errors.Internal("pool at 10.0.0.7 is at -1"),
        errors.WorkerLost("10.0.0.7"),
        errors.TransferFailed("10.0.0.7"),
        errors.SpecError("/home/10.0.0.7"),
        KeyError("10.0.0.7"),
    ],
)
def test_internal_errors_show_only_an_incident_that_the_log_has_too(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status = to_rich_status(error)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"10.0.0.7" not in status.SerializeToString()
    incident = unpack(status, error_details_pb2.ErrorInfo).metadata["incident"]  # type: ignore[attr-defined]
    assert incident in status.message
    assert incident in caplog.text


def test_a_status_stays_small_whatever_the_caller_sent() -> None:
    for text in ("m" * 10**6, "\N{PILE OF POO}" * 10**6, "\ud800" * 10**6):
        status = to_rich_status(errors.ModelNotFound(text, (text,)))
        assert len(status.message.encode()) <= MAX_TEXT_BYTES
        # grpc-message is percent-encoded (3 bytes for 1), the details are base64; headers must stay under 8 KiB
        assert 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 / 3 < 8 * 1024
