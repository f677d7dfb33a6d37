"""Which kinds of link a worker offers, and when they are made."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from twinpool.kv_transfer.cuda_accelerator import ABORT_TIMEOUT_S
from twinpool.kv_transfer.device_pool import DevicePool
from twinpool.kv_transfer.ipc_device import DigestTensor
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.link_choice import LinkOffer
from twinpool.kv_transfer.links import Cutting, LinkKinds, usable_links
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import MemoryNetwork

from .conformance_worker import DeviceCache
from .fakes import NumpyCache
from .strict_group import StrictAccelerator
from .strict_ipc import StrictIpcDevice, allocate_strict, strict_digest


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


# --- GPUs -------------------------------------------------------------------------------------------------------------


class FakeDevices:
    """A GPU that is none, and lacks what is named."""

    def __init__(self, index: int, *, lacks: str = "") -> None:
        self._lacks = lacks
        self.identity = f"GPU-{index}"

    def _check(self, kind: str) -> None:
        if self._lacks == kind:
            raise ValueError(f"a test has no {kind}")

    def accelerator(self) -> StrictAccelerator:
        self._check("nccl")
        return StrictAccelerator(self.identity)

    def ipc(self) -> StrictIpcDevice:
        self._check("cuda_ipc")
        return StrictIpcDevice(self.identity)

    def digest_tensor(self) -> DigestTensor:
        self._check("digest")
        return strict_digest


class GpuCache(DeviceCache):
    def __init__(self) -> None:
        super().__init__(0, allocate_strict)
        self.device_pool = DevicePool(self.pool, 3)


@pytest.mark.parametrize(
    ("lacks", "offered", "description"),
    [
        (
            "",
            ("cuda_ipc", "nccl", "gloo"),
            "auto: cuda_ipc on this host, nccl to another GPU, gloo elsewhere",
        ),
        (
            "nccl",
            ("cuda_ipc", "gloo"),
            "auto: cuda_ipc on this host, gloo elsewhere; no nccl: a test has no nccl",
        ),
        (
            "cuda_ipc",
            ("nccl", "gloo"),
            "auto: nccl to another GPU, gloo elsewhere; no cuda_ipc: a test has no cuda_ipc",
        ),
        (
            "digest",
            ("nccl", "gloo"),
            "auto: nccl to another GPU, gloo elsewhere; no cuda_ipc: a test has no digest",
        ),
    ],
)
def test_a_worker_whose_kv_is_on_a_gpu_offers_what_that_gpu_can(
    lacks: str, offered: tuple[str, ...], description: str
) -> None:
    find = partial(FakeDevices, lacks=lacks)
    usable = usable_links("auto", GpuCache(), "127.0.0.1", digest=True, find_device=find)
    assert (usable.offer.kinds, usable.description) == (offered, description)
    assert usable.offer.device == "GPU-3"
    assert [usable.get(kind).kind for kind in offered] == list(offered)
    assert set(usable.offer.chunk_bytes) == set(offered)


def test_a_worker_whose_kv_is_in_host_memory_looks_for_no_gpu_unless_told_to() -> None:
    def find(index: int) -> FakeDevices:
        raise AssertionError("nobody asked for a GPU")

    assert not usable_links("auto", NumpyCache(), "127.0.0.1", digest=True, find_device=find).offer.device
    named = usable_links("nccl", NumpyCache(), "127.0.0.1", digest=True, find_device=FakeDevices)
    assert (named.offer.kinds, named.offer.device) == (("nccl",), "GPU-0")


@pytest.mark.parametrize(
    ("named", "lacks", "on_gpu", "why"),
    [
        ("nccl", "nccl", True, "transfer.link: nccl: a test has no nccl"),
        ("cuda_ipc", "cuda_ipc", True, "transfer.link: cuda_ipc: a test has no cuda_ipc"),
        ("cuda_ipc", "", False, "transfer.link: cuda_ipc: this worker's KV does not lie on a GPU"),
    ],
)
def test_a_link_between_gpus_that_is_named_and_cannot_be_had_is_refused(
    named: str, lacks: str, on_gpu: bool, why: str
) -> None:
    cache = GpuCache() if on_gpu else NumpyCache()
    with pytest.raises(ValueError, match="transfer") as refused:
        usable_links(named, cache, "127.0.0.1", digest=True, find_device=partial(FakeDevices, lacks=lacks))
    assert str(refused.value) == why


def test_a_machine_without_a_gpu_refuses_nccl_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="transfer") as refused:
        kinds("nccl")
    assert str(refused.value) == "transfer.link: nccl: nccl needs a GPU, and torch can use none on this machine"


def test_closing_waits_longer_where_a_communicator_may_have_to_be_aborted() -> None:
    named = usable_links("nccl", NumpyCache(), "127.0.0.1", digest=True, find_device=FakeDevices)
    assert kinds("gloo").close_timeout_s < named.close_timeout_s
    assert named.close_timeout_s > 10.0 + ABORT_TIMEOUT_S  # the communicator's deadline, and then the abort's


# --- Chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["gloo", "shm"])
def test_links_for_a_peer_are_cut_at_the_size_that_both_take(named: str) -> None:
    usable = kinds(named)
    peer = LinkOffer((named,), chunk_bytes={named: 1 << 20})
    fitted, own = usable.get(named, peer), usable.get(named)
    assert isinstance(fitted, Cutting)
    assert isinstance(own, Cutting)
    assert (fitted.chunk_bytes, own.chunk_bytes) == (1 << 20, usable.offer.chunk_bytes[named])
    assert usable.get(named, LinkOffer((named,))) is own


def test_torch_is_not_imported_for_shared_memory() -> None:
    code = "import sys, twinpool.kv_transfer.endpoint\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
