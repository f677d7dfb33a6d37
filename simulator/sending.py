"""One handoff at its source, in a simulated cluster: KV leaves as it is computed, once there is room for it.

Stands where the handoff's machines and links stand in a live worker (their protocol is checked elsewhere, message by
message); here only its time matters. Knows bytes and times.
"""

from collections.abc import Callable

from twinpool.simulator.attempt import Attempt
from twinpool.simulator.flows import Card, Flow
from twinpool.simulator.observer import Transfer
from twinpool.simulator.scenario import WorkerKind
from twinpool.simulator.world import Timer, World


class Sending:
    """Owns what one source sends to one target. ``arrived(transfer)`` is called once, when all of it is there."""

    def __init__(
        self,
        world: World,
        attempt: Attempt,
        kind: WorkerKind,
        source: tuple[int, Card],
        target: tuple[int, Card],
        arrived: Callable[["Sending"], None],
    ) -> None:
        self.attempt = attempt
        self.target = target[0]
        self._world = world
        self._kind = kind
        self._source_place, self._source_card = source
        self._target_card = target[1]
        self._arrived = arrived
        self._ready_tokens = 0  # computed, or soon: leading ones
        self._sent_tokens = 0  # given to a flow, or there already
        self._skip_tokens = 0
        self._is_granted = False
        self._computed_s: float | None = None
        self._last_bytes = 0.0  # of the last layer group: it cannot leave before all is computed
        self._flow: Flow | None = None
        self._flow_started_s = 0.0
        self._first_s: float | None = None
        self._wire_s = 0.0
        self._timers: list[Timer] = []
        self.transfer: Transfer | None = None
        self.computed_s = 0.0

    def granted(self, skip_tokens: int) -> None:
        """The target has room, and has so many leading tokens cached."""
        self._is_granted = True
        self._skip_tokens = self._sent_tokens = skip_tokens
        self._send()

    def cached(self, num_tokens: int) -> None:
        """So many leading tokens were in the source's cache."""
        self._ready(num_tokens)

    def computing(self, first: int, end: int, started_s: float, ends_s: float) -> None:
        """Tokens [first, end) are computed between these times, a layer group at a time."""
        groups = self._kind.layer_groups
        self._last_bytes = (end - first) * self._kind.kv_token_bytes / groups
        first_group_s = started_s + (ends_s - started_s) / groups
        self._timers = [self._world.at(first_group_s, lambda: self._ready(end))]

    def computed(self, at_s: float) -> None:
        """All of the prompt is computed; its first token was sampled at that time, now or before."""
        self._computed_s = self.computed_s = at_s
        if self._is_granted:
            self._maybe_finish()

    def stop(self) -> None:
        """Nothing more leaves; ``arrived`` is not called any more. Idempotent."""
        for timer in self._timers:
            timer.cancel()
        if self._flow is not None:
            self._flow.stop()
            self._flow = None
        self._is_granted = False

    def _ready(self, num_tokens: int) -> None:
        self._ready_tokens = max(self._ready_tokens, num_tokens)
        self._send()

    def _send(self) -> None:
        num_tokens = self._ready_tokens - self._sent_tokens
        if not self._is_granted:
            return
        if num_tokens <= 0:
            if self._computed_s is not None:
                self._maybe_finish()
            return
        self._sent_tokens = self._ready_tokens
        num_bytes = float(num_tokens * self._kind.kv_token_bytes)
        if self._flow is not None:
            self._flow.add(num_bytes)
            return
        self._flow_started_s = self._world.now
        if self._first_s is None:
            self._first_s = self._world.now
        self._flow = Flow(self._world, self._source_card, self._target_card, num_bytes, self._flowed)

    def _flowed(self) -> None:
        self._flow = None
        self._wire_s += self._world.now - self._flow_started_s
        if self._computed_s is not None:
            self._maybe_finish()

    def _maybe_finish(self) -> None:
        """If all has left, let the rest of the time pass: the last group's, if that was computed last, and latency."""
        assert self._computed_s is not None
        if self._flow is not None or self.transfer is not None or self._sent_tokens < self.attempt.num_tokens:
            return
        rate = min(self._source_card.bytes_per_s, self._target_card.bytes_per_s)
        last_s = min(self._last_bytes / rate, self._wire_s)
        ends_s = max(self._world.now, self._computed_s + last_s) + self._kind.link_latency_s
        self._timers = [self._world.at(ends_s, self._finish)]
        self.transfer = self._describe(ends_s)

    def _describe(self, ends_s: float) -> Transfer:
        num_bytes = (self.attempt.num_tokens - self._skip_tokens) * self._kind.kv_token_bytes
        started_s = self._first_s if self._first_s is not None else ends_s
        wire_s = 0.0 if self._first_s is None else self._wire_s + self._kind.link_latency_s
        exposed_s = ends_s - max(self.computed_s, started_s)
        place = self._source_place
        return Transfer(self.attempt.index, place, self.target, started_s, ends_s, num_bytes, wire_s, exposed_s)

    @property
    def wire_s(self) -> float:
        """Seconds that bytes were moving; 0 before all are known to arrive."""
        return 0.0 if self.transfer is None else self.transfer.wire_s

    def _finish(self) -> None:
        self._arrived(self)
