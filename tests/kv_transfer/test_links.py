"""Which kind of link a worker uses, and why."""

import pytest

from twinpool.kv_transfer.links import choose_links

from .fakes import NumpyCache


@pytest.mark.parametrize(("kind", "why"), [("auto", "host memory"), ("gloo", "transfer.link")])
def test_the_choice_says_why(kind: str, why: str) -> None:
    links = choose_links(kind, NumpyCache(), "127.0.0.1", digest=True)
    assert links.kind == "gloo"
    assert why in links.why


@pytest.mark.parametrize("kind", ["nccl", "memory", "tcp", ""])
def test_a_link_that_is_not_available_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match="available: auto, gloo"):
        choose_links(kind, NumpyCache(), "127.0.0.1", digest=True)
