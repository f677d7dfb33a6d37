"""Statuses without our details, from proxies or from gRPC itself, still become the class that says what to do."""

from typing import Any

import grpc
import pytest

from twinpool.client.errors import ConnectionFailed, Unreachable, error_from_rpc
from twinpool.core import errors

CODE = grpc.StatusCode


class BareError:
    """A failed call of which only the code and the text are known."""

    def __init__(self, code: grpc.StatusCode, text: str | None = "text", metadata: Any = None) -> None:
        self.code = lambda: code
        self.details = lambda: text
        self.trailing_metadata = lambda: metadata


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CODE.INVALID_ARGUMENT, errors.InvalidRequest),
        (CODE.NOT_FOUND, errors.Internal),
        (CODE.UNAUTHENTICATED, errors.Unauthenticated),
        (CODE.PERMISSION_DENIED, errors.Forbidden),
        (CODE.RESOURCE_EXHAUSTED, errors.Overloaded),
        (CODE.UNAVAILABLE, ConnectionFailed),
        (CODE.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (CODE.CANCELLED, errors.Cancelled),
        (CODE.ABORTED, errors.AttemptsExhausted),
        (CODE.DATA_LOSS, errors.Corrupted),
        (CODE.UNKNOWN, errors.Internal),
        (CODE.INTERNAL, errors.Internal),
        (CODE.UNIMPLEMENTED, errors.Internal),
    ],
)
@pytest.mark.parametrize("metadata", [None, (("grpc-status-details-bin", b"\xff"),), (("other", "x"),)])
def test_a_status_without_usable_details_has_the_class_of_its_code(
    code: grpc.StatusCode, kind: type[errors.TwinpoolError], metadata: Any
) -> None:
    error = error_from_rpc(BareError(code, "text", metadata), "h:1", "waiting")
    assert type(error) is kind
    assert ("waiting" if kind is errors.DeadlineExceeded else "text") in str(error)
    error_from_rpc(BareError(code, None, metadata), "h:1", "waiting")


def test_something_else_at_the_address_is_named() -> None:
    assert "h:1" in str(error_from_rpc(BareError(CODE.UNIMPLEMENTED), "h:1", "waiting"))


def test_unreachable_names_every_address_and_reason() -> None:
    unreachable = Unreachable()
    unreachable.add(ConnectionFailed("a:1", "refused"))
    unreachable.add(ConnectionFailed("b:2", "timed out"))
    assert str(unreachable.summary()).endswith("at a:1, b:2: refused; timed out")


def test_unreachable_raises_what_other_addresses_would_repeat() -> None:
    with pytest.raises(errors.Forbidden):
        Unreachable().add(errors.Forbidden("no"))
