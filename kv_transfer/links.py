"""Says which kinds of link a worker can use, and makes them when they are first needed.

Imports a transport only when it is used. Knows no peer; link_choice.py decides between kinds for a pair.
"""

from collections.abc import Callable, Mapping
from functools import partial

from twinpool.kv_transfer.link import LinkError, Links
from twinpool.kv_transfer.link_choice import LinkOffer
from twinpool.kv_transfer.shm import ShmLinks, host_identity
from twinpool.model.kv_layout import KVCache

KINDS = ("auto", "gloo", "shm")  # what transfer.link may say of workers in processes of their own


class LinkKinds:
    """The kinds that one worker can use.

    Args:
        makers: what makes the links of each kind, best kind first.
        named_by: what gave these kinds, for people.
        description: the kinds, for people, in a few words.
        host: see LinkOffer.
    """

    def __init__(
        self, makers: Mapping[str, Callable[[], Links]], *, named_by: str, description: str, host: str = ""
    ) -> None:
        self.offer = LinkOffer(tuple(makers), host)
        self.named_by = named_by
        self.description = description
        self._makers = makers
        self._made: dict[str, Links] = {}

    @classmethod
    def only(cls, links: Links) -> "LinkKinds":
        """One kind, made already."""
        kinds = cls({links.kind: lambda: links}, named_by=links.why or links.kind, description=links.kind)
        kinds.get(links.kind)
        return kinds

    def is_quick(self, kind: str) -> bool:
        """Whether ``get`` answers at once."""
        return kind in self._made or kind not in self._makers

    def get(self, kind: str) -> Links:
        """The links of a kind; the first time it may import a transport, which takes seconds. From any thread.

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
        return self._made[kind]


def usable_links(named: str, cache: KVCache, interface: str, *, digest: bool) -> LinkKinds:
    """The kinds that ``transfer.link`` lets this worker use.

    A kind that is named is made at once, so that a worker which cannot use it does not start. With ``auto`` a peer on
    this host is met over shared memory where KV lies in such, everybody else over gloo.

    Raises:
        ValueError: the kind named is none that workers in processes of their own can use, or not here.
    """
    if named not in KINDS:
        raise ValueError(f"transfer.link: {named} is not available; available: {', '.join(KINDS)}")
    host = host_identity()
    makers: dict[str, Callable[[], Links]] = {
        "shm": partial(ShmLinks, cache, digest=digest),
        "gloo": partial(_make_gloo, cache, interface, digest=digest),
    }
    if named != "auto":
        kinds = LinkKinds({named: makers[named]}, named_by=f"transfer.link: {named}", description=named, host=host)
        try:
            kinds.get(named)
        except LinkError as error:
            raise ValueError(f"transfer.link: {error}") from None
        return kinds
    if cache.shared is None or not host:
        del makers["shm"]
        return LinkKinds(makers, named_by="auto", description="auto: gloo, as KV cannot be shared here", host=host)
    kinds = LinkKinds(makers, named_by="auto", description="auto: shm on this host, gloo elsewhere", host=host)
    kinds.get("shm")
    return kinds


def _make_gloo(cache: KVCache, interface: str, *, digest: bool) -> Links:
    from twinpool.kv_transfer.gloo import GlooLinks

    return GlooLinks(cache, interface, digest=digest)
