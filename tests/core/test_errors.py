"""What errors say, and that every one of them can be caught as ours."""

import copy
import inspect

import pytest

from twinpool.core import errors
from twinpool.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    Overloaded,
    TwinpoolError,
)

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_a_twinpool_error_with_a_docstring(error: type[Exception]):
    assert issubclass(error, TwinpoolError)
    assert error.__doc__


def test_the_tree_in_the_module_names_every_error():
    assert errors.__doc__ is not None
    missing = [error.__name__ for error in CLASSES if error.__name__ not in errors.__doc__]
    assert missing == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidRequest("sampling.top_p", "must be over 0"), "sampling.top_p: must be over 0"),
        (ModelNotFound("a", ("b", "c")), "model 'a' is not served here; served: b, c"),
        (Overloaded("the queue is full", 2.0), "overloaded: the queue is full; retry after 2 s"),
        (NoWorkers("decode"), "no decode worker is ready; retry after 1 s"),
        (DeadlineExceeded("queued"), "deadline exceeded while queued"),
    ],
)
def test_an_error_says_what_where_and_when_to_come_back(error: TwinpoolError, text: str):
    assert str(error) == text


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("a", "b"), ModelNotFound("a", ("b",)), Overloaded("a", 2.0), NoWorkers("a"), DeadlineExceeded("a")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_in_another_process(error: TwinpoolError):
    twin = copy.copy(error)  # by the protocol that Ray uses between processes
    assert type(twin) is type(error)
    assert (str(twin), vars(twin)) == (str(error), vars(error))
