"""What a worker says after a step, in the words of the router and of a request's record.

Knows the worker's protocol; decides nothing.
"""

from collections.abc import Sequence

from twinpool.cluster.flight import Record
from twinpool.core.sampling import TokenLogprobs
from twinpool.protos.convert import logprobs_from_proto
from twinpool.protos.twinpool.v1 import generation_pb2
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.views import WorkerLoad


def load_of(view: pb.WorkerView) -> WorkerLoad:
    """A worker's load."""
    return WorkerLoad(
        version=view.version,
        free_blocks=view.free_blocks,
        running=view.running,
        context_tokens=view.context_tokens,
        waiting_prefills=view.waiting_prefills,
        waiting_prefill_tokens=view.waiting_prefill_tokens,
        reservations=view.reservations,
        reserved_blocks=view.reserved_blocks,
        parked_blocks=view.parked_blocks,
        peak_blocks=view.peak_blocks,
        cause=view.cause,
    )


def read_logprobs(messages: Sequence[generation_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Logarithms as they came. Raises Internal for a message that contradicts itself."""
    return tuple([logprobs_from_proto(message) for message in messages]) if messages else ()


def note_timings(record: Record, delta: pb.Delta) -> None:
    """Write down what a delta says about time."""
    if delta.HasField("prefill") and delta.index == 0:
        record.queue_s, record.prefill_s = delta.prefill.queue_s, delta.prefill.prefill_s
        record.cached_tokens = delta.prefill.cached_tokens
    if delta.HasField("handoff"):
        handoff = delta.handoff
        record.handoff_s, record.wire_s, record.exposed_s = handoff.handoff_s, handoff.wire_s, handoff.exposed_s
        record.kv_bytes = handoff.kv_bytes
