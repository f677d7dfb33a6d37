import pytest

from .interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter():
    pytest.importorskip("triton")
    child = Interpreter()
    yield child
    child.close()


def pytest_collection_modifyitems(items):
    for item in items:
        if "interpreter" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
