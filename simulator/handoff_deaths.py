"""Workers of a modelled cluster that die, and others that are started in their place.

Knows who notices a death, and when; what comes of it is the handoffs' business.
"""

from twinpool.kv_transfer import events as ev
from twinpool.simulator.handoff_cluster import Cluster

HUNG_UP_S = 0.02  # after which the peers' sockets know


def kill_source(cluster: Cluster) -> None:
    """The source dies with all its KV: the targets' sockets and the gateway notice, each after a while."""
    cluster.is_source_alive = False
    cluster.source_life += 1
    for end in [end for ends in cluster.sources.values() for end in ends]:
        end.is_dead = True
    cluster.sources = {}
    for link in cluster.links.values():
        link.close()
        for end in link.target.live_ends():
            end.soon(ev.PeerLost(end.machine.epoch, "gone"), HUNG_UP_S)
    for call in cluster.calls.values():
        if not call.outcome:
            cluster.notice_loss(call, call.epoch)


def start_source(cluster: Cluster) -> None:
    """Another source under the same name."""
    cluster.is_source_alive = True
    cluster.source_clock_s = cluster.draw_clock()


def kill_target(cluster: Cluster, name: str) -> None:
    """The target dies: the source's sockets and the gateway notice, each after a while. See Cluster.start_target."""
    target, link = cluster.targets[name], cluster.links[name]
    target.is_alive = False
    for end in target.ends.values():
        end.is_dead = True
    link.close()
    for end in cluster.sources_on(link):
        end.soon(ev.PeerLost(end.machine.epoch, "gone"), HUNG_UP_S)
    for call in cluster.calls.values():
        if call.target == name and not call.outcome:
            cluster.notice_loss(call, call.epoch)
