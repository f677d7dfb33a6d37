import pytest

from .interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter():
    pytest.importorskip("triton")
    child = Interpreter()
    yield child
    child.close()
