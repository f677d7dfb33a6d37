"""Which kinds of link a worker offers, and when they are made."""

import subprocess
import sys

import pytest

from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.links import LinkKinds, usable_links
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork

from .fakes import NumpyCache


def kinds(named: str, *, shared: bool = True, interface: str = "127.0.0.1") -> LinkKinds:
    return usable_links(named, NumpyCache(shared=shared), interface, digest=True)


@pytest.mark.parametrize(
    ("named", "shared", "offered", "description"),
    [
        ("auto", True, ("shm", "gloo"), "auto: shm on this host, gloo elsewhere"),
        ("auto", False, ("gloo",), "auto: gloo, as KV cannot be shared here"),
        ("shm", True, ("shm",), "shm"),
        ("gloo", True, ("gloo",), "gloo"),
    ],
)
def test_a_worker_offers_what_it_can_use(named: str, shared: bool, offered: tuple[str, ...], description: str) -> None:
    usable = kinds(named, shared=shared)
    assert usable.offer.kinds == offered
    assert usable.offer.host
    assert usable.description == description
    assert [usable.get(kind).kind for kind in offered] == list(offered)


def test_a_kind_that_was_not_named_is_not_used() -> None:
    with pytest.raises(LinkError, match="receives over gloo, not over shm"):
        kinds("gloo").get("shm")


@pytest.mark.parametrize("named", ["nixl", "memory", "tcp", ""])
def test_a_link_that_is_not_available_is_refused_by_name(named: str) -> None:
    with pytest.raises(ValueError, match="available: auto, "):
        kinds(named)


def test_a_worker_that_cannot_use_what_was_named_does_not_start() -> None:
    with pytest.raises(ValueError, match=r"transfer\.link: shm: this worker's KV does not lie in memory"):
        kinds("shm", shared=False)
    with pytest.raises(ValueError, match=r"transfer\.link: gloo: .*interface"):
        kinds("gloo", interface="0.0.0.0")


def test_a_kind_is_made_once() -> None:
    usable = kinds("auto")
    assert usable.get("shm") is usable.get("shm")


def test_links_that_were_made_already_are_the_only_kind() -> None:
    links = MemoryLinks(MemoryNetwork(), NumpyCache(), why="a test")
    usable = LinkKinds.only(links)
    assert usable.is_quick("memory")
    assert usable.offer.kinds == ("memory",)
    assert usable.get("memory") is links


def test_torch_is_not_imported_for_shared_memory() -> None:
    code = "import sys, twinpool.kv_transfer.endpoint\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
