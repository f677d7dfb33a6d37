"""What a request costs each worker, in blocks to compute or to keep, given what the workers have cached.

Knows no goals and no latencies, and chooses nobody: placement.py takes the cheapest of those that can take the request.
"""

import numpy as np
from numpy.typing import NDArray

from twinpool.router.demand import Demand
from twinpool.router.views import ClusterView


def prefix_cost(demand: Demand, view: ClusterView, overlap_weight: float) -> NDArray[np.float64]:
    """``overlap_weight * prefill blocks + decode blocks``, [N] (the KV router of NVIDIA Dynamo: its router_design.md,
    "Cost Calculation"), for prefilling there, for decoding there, and for both.

    Prefill blocks are those that a worker has not cached, behind the prompts that wait there; to a decode worker they
    are the blocks that have to be sent, as leading ones that it holds are not. Decode blocks are those that it would
    have spoken for with this request: what is cached is shared, and takes no more room. A worker that holds a popular
    prefix becomes dear as its queue grows; once that costs more than computing and keeping the prefix, another worker
    is the cheapest, computes it, and then holds it too.
    """
    own_blocks = demand.uncached_tokens(len(view.worker_ids)) / view.block_tokens
    prefill_blocks = view.waiting_prefill_tokens / view.block_tokens + own_blocks
    decode_blocks = view.peak_blocks + view.reserved_blocks + own_blocks
    cost: NDArray[np.float64] = overlap_weight * prefill_blocks + decode_blocks
    return cost
