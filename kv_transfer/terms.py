"""What the source of a handoff announces and what the gateway ordered must agree on, before a block is bound for it.

Pure. Knows no state of a handoff.
"""

from twinpool.kv_transfer.codec import CodecName, is_lossless
from twinpool.kv_transfer.events import Reserve
from twinpool.kv_transfer.handoff import Started


def disagreement(started: Started, order: Reserve, codecs: tuple[CodecName, ...]) -> str:
    """Why the handoff must not be; empty if it may.

    Args:
        codecs: that KV may come in to this worker.
    """
    if started.num_tokens != order.num_tokens:
        return f"the source sends {started.num_tokens} tokens, the order names {order.num_tokens}"
    if started.codec not in codecs:
        return f"the source sends {started.codec}; this worker takes {', '.join(codecs)}"
    if not order.allows_loss and not is_lossless(started.codec):
        return f"the source sends {started.codec}; the request allows no loss"
    return ""
