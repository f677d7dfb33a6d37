"""Chooses the codec of each handoff that leaves a worker, from what its links and its prefills were measured at.

Knows rates and the policy. Knows no handoff, and of a pair only that it has a link.
"""

from math import inf

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_policy import CodecPolicy
from twinpool.kv_transfer.pair import Pair
from twinpool.kv_transfer.throughput import Throughput
from twinpool.model.layer_groups import StreamRates

RATE_MAX_AGE_S = 30.0  # a link's; then a handoff goes raw again, since only raw ones tell what the link can do


class SourceCodecs:
    """Owns the rates of one worker. Used in turns only."""

    def __init__(self, policy: CodecPolicy) -> None:
        self._policy = policy
        self._production = Throughput()
        self._links: dict[Pair, Throughput] = {}

    def choose(self, pair: Pair, link_kind: str, now: float, *, allows_loss: bool) -> CodecName:
        """The codec for a handoff to this pair's target that starts now."""
        link = self._links.get(pair)
        return self._policy.choose(
            allows_loss=allows_loss,
            link_kind=link_kind,
            link_bytes_per_s=link.bytes_per_s(now - RATE_MAX_AGE_S) if link else None,
            produced_bytes_per_s=self._production.bytes_per_s(-inf),
        )

    def stream_rates(self, now: float) -> StreamRates:
        """What streaming costs: the slowest link that was used lately, and the prefills."""
        rates = (link.bytes_per_s(now - RATE_MAX_AGE_S) for link in self._links.values())
        slowest = min((rate for rate in rates if rate is not None), default=None)
        return StreamRates(slowest, self._production.bytes_per_s(-inf))

    def produced(self, num_bytes: int, started_s: float, ended_s: float) -> None:
        """A prefill made so much raw KV; several may share the time."""
        self._production.add(num_bytes, started_s, ended_s)

    def sent_raw(self, pair: Pair, num_bytes: int, started_s: float, ended_s: float) -> None:
        """The pair's link took so much. Not for KV in a codec: there, coding may take longer than the link does."""
        self._links.setdefault(pair, Throughput()).add(num_bytes, started_s, ended_s)

    def forget(self, pair: Pair) -> None:
        """The pair is lost."""
        self._links.pop(pair, None)
