"""Chooses the kind of link that a worker uses, and says why.

Imports a transport only when it is chosen.
"""

from twinpool.kv_transfer.link import Links
from twinpool.model.kv_layout import KVCache


def choose_links(kind: str, cache: KVCache, interface: str, *, digest: bool) -> Links:
    """Return the links of ``transfer.link``; ``auto`` chooses. Every worker of a cluster must choose alike.

    Raises:
        ValueError: the kind is not one that workers in processes of their own can use, or ``interface`` is no address.
    """
    why = {"auto": "chosen by auto: KV lies in host memory", "gloo": "named by transfer.link"}.get(kind)
    if why is None:
        raise ValueError(f"transfer.link: {kind} is not available; available: auto, gloo")
    from twinpool.kv_transfer.gloo import GlooLinks

    return GlooLinks(cache, interface, why=why, digest=digest)
