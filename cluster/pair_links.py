"""Says for each worker that KV is handed to which kind of link was chosen, and why.

Knows what an endpoint tells of its links. Chooses none.
"""

from collections.abc import Iterable

from twinpool.kv_transfer.endpoint import LinkStats
from twinpool.protos.twinpool.v1 import cluster_pb2

MAX_WHY = 200  # characters: it may quote an error


def links_to_proto(links: Iterable[LinkStats]) -> cluster_pb2.PairLinks:
    """Those to targets that were chosen, or for which none would do, by target."""
    chosen = sorted((link for link in links if link.is_outgoing and link.why), key=lambda link: link.peer)
    return cluster_pb2.PairLinks(
        links=[
            cluster_pb2.PairLink(target=link.peer, kind=link.kind, why=link.why[:MAX_WHY], is_open=link.is_open)
            for link in chosen
        ]
    )
