"""Says which kinds of link a worker can use, and makes them when they are first needed.

Imports a transport only when it is used. Knows no peer; link_choice.py decides between kinds for a pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, Self, runtime_checkable

from twinpool.kv_transfer.device_links import CudaDevices, DeviceLinks, FindDevices, links_between_devices
from twinpool.kv_transfer.device_pool import device_pool_of
from twinpool.kv_transfer.link import CHUNK_BYTES, LinkError, Links
from twinpool.kv_transfer.link_choice import BETWEEN_DEVICES, LinkOffer, agreed_chunk_bytes
from twinpool.kv_transfer.shm import ShmLinks, host_identity
from twinpool.model.kv_layout import KVCache

KINDS = ("auto", "gloo", "shm", "nccl", "cuda_ipc")  # what transfer.link may say of workers in processes of their own
CLOSE_TIMEOUT_S = 15.0  # over what a link's thread can linger: one that meets its peer, or waits for a chunk
# Of kinds that may take longer. A thread of nccl may be making its communicator, and then has to abort it.
CLOSE_TIMEOUTS_S = {"nccl": 30.0}

Makers = Mapping[str, Callable[[], Links]]


@runtime_checkable
class Cutting(Protocol):
    """Links that cut groups into chunks, whose size can be agreed."""

    chunk_bytes: int

    def cut_at(self, chunk_bytes: int) -> Self:
        """The same links, with chunks of this size at most."""
        ...


class LinkKinds:
    """The kinds that one worker can use.

    Args:
        makers: what makes the links of each kind, best kind first.
        named_by: what gave these kinds, for people.
        description: the kinds, for people, in a few words.
        host, device, chunk_bytes: see LinkOffer.
    """

    def __init__(
        self,
        makers: Makers,
        *,
        named_by: str,
        description: str,
        host: str = "",
        device: str = "",
        chunk_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self.offer = LinkOffer(tuple(makers), host, device, dict(chunk_bytes or {}))
        self.named_by = named_by
        self.description = description
        self._makers = makers
        self._made: dict[str, Links] = {}

    @classmethod
    def only(cls, links: Links) -> "LinkKinds":
        """One kind, made already."""
        kinds = cls({links.kind: lambda: links}, named_by=links.why or links.kind, description=links.kind)
        if isinstance(links, Cutting):
            kinds.offer = replace(kinds.offer, chunk_bytes={links.kind: links.chunk_bytes})
        kinds.get(links.kind)
        return kinds

    @property
    def close_timeout_s(self) -> float:
        """How long the threads of links that were closed may take to end."""
        return max([CLOSE_TIMEOUT_S, *(CLOSE_TIMEOUTS_S.get(kind, 0.0) for kind in self._made)])

    def is_quick(self, kind: str) -> bool:
        """Whether ``get`` answers at once."""
        return kind in self._made or kind not in self._makers

    def get(self, kind: str, theirs: LinkOffer | None = None) -> Links:
        """The links of a kind; the first time it may import a transport, which takes seconds. From any thread.

        Args:
            theirs: the offer of the peer that they are for; then chunks are of the size that both take.

        Raises:
            LinkError: this worker has no such links, or cannot use them.
        """
        if kind not in self._makers:
            raise LinkError(f"this worker receives over {', '.join(self._makers)}, not over {kind[:20]}")
        if kind not in self._made:
            try:
                self._made[kind] = self._makers[kind]()
            except ValueError as error:
                raise LinkError(f"{kind}: {error}") from None
        links = self._made[kind]
        if theirs is None or not isinstance(links, Cutting):
            return links
        chunk_bytes = agreed_chunk_bytes(kind, self.offer, theirs)
        return links if chunk_bytes == links.chunk_bytes else links.cut_at(chunk_bytes)


def usable_links(
    named: str, cache: KVCache, interface: str, *, digest: bool, find_device: FindDevices | None = None
) -> LinkKinds:
    """The kinds that ``transfer.link`` lets this worker use.

    A kind that is named is made at once, so that a worker which cannot use it does not start. With ``auto``, where KV
    lies on a GPU, a peer on this host is met over cuda_ipc, and one with another GPU over nccl; where KV lies in shared
    memory, a peer on this host over that; everybody else over gloo.

    Args:
        find_device: another way to the GPU that KV is moved between, for tests.

    Raises:
        ValueError: the kind named is none that workers in processes of their own can use, or not here.
    """
    if named not in KINDS:
        raise ValueError(f"transfer.link: {named} is not available; available: {', '.join(KINDS)}")
    find_device = find_device or CudaDevices
    host = host_identity()
    if named in BETWEEN_DEVICES:
        on_device = links_between_devices((named,), cache, interface, find_device, digest=digest)
        if named in on_device.refused:
            raise ValueError(f"transfer.link: {named}: {on_device.refused[named]}")
        return _between_devices(on_device, named_by=f"transfer.link: {named}", description=named, host=host)
    if named == "auto" and device_pool_of(cache) is not None:
        return _auto_between_devices(cache, interface, host, find_device, digest=digest)
    makers: dict[str, Callable[[], Links]] = {
        "shm": partial(ShmLinks, cache, digest=digest),
        "gloo": partial(_make_gloo, cache, interface, digest=digest),
    }
    if named != "auto":
        kinds = _in_host_memory({named: makers[named]}, f"transfer.link: {named}", named, host)
        try:
            kinds.get(named)
        except LinkError as error:
            raise ValueError(f"transfer.link: {error}") from None
        return kinds
    if cache.shared is None or not host:
        del makers["shm"]
        return _in_host_memory(makers, "auto", "auto: gloo, as KV cannot be shared here", host)
    kinds = _in_host_memory(makers, "auto", "auto: shm on this host, gloo elsewhere", host)
    kinds.get("shm")
    return kinds


def _in_host_memory(makers: Makers, named_by: str, description: str, host: str) -> LinkKinds:
    sizes = dict.fromkeys(makers, CHUNK_BYTES)
    return LinkKinds(makers, named_by=named_by, description=description, host=host, chunk_bytes=sizes)


def _auto_between_devices(
    cache: KVCache, interface: str, host: str, find_device: FindDevices, *, digest: bool
) -> LinkKinds:
    on_device = links_between_devices(("cuda_ipc", "nccl"), cache, interface, find_device, digest=digest)
    where = {"cuda_ipc": "cuda_ipc on this host", "nccl": "nccl to another GPU", "gloo": "gloo elsewhere"}
    on_device.made["gloo"] = _make_gloo(cache, interface, digest=digest)
    has = ", ".join(where[kind] for kind in on_device.made)
    lacks = "".join(f"; no {kind}: {why}" for kind, why in on_device.refused.items())
    return _between_devices(on_device, named_by="auto", description=f"auto: {has}{lacks}", host=host)


def _between_devices(found: DeviceLinks, *, named_by: str, description: str, host: str) -> LinkKinds:
    makers = {kind: partial(found.made.__getitem__, kind) for kind in found.made}
    sizes = {kind: links.chunk_bytes for kind, links in found.made.items() if isinstance(links, Cutting)}
    kinds = LinkKinds(
        makers, named_by=named_by, description=description, host=host, device=found.device, chunk_bytes=sizes
    )
    for kind in found.made:
        kinds.get(kind)
    return kinds


def _make_gloo(cache: KVCache, interface: str, *, digest: bool) -> Links:
    from twinpool.kv_transfer.gloo import GlooLinks

    return GlooLinks(cache, interface, digest=digest)
