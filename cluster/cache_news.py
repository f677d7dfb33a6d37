"""What enters and leaves a worker's prefix cache, told after each step while a gateway wants to know.

Knows the pool's hashes, not what gateways make of them. Engine thread only.
"""

from twinpool.cluster.engine_events import EngineEvents
from twinpool.model.block_pool import BlockPool


class CacheNews:
    """Tells through the engine's events, so that lists and changes arrive in the order in which they were true."""

    def __init__(self, pool: BlockPool, events: EngineEvents) -> None:
        self._pool = pool
        self._events = events

    def list_for(self, gateway_id: str) -> None:
        """Tell one gateway all that is cached now, and every gateway, from now on, what changes."""
        self.tell()
        self._events.cache_listed(gateway_id, self._pool.cached_hashes())

    def tell(self) -> None:
        """Tell what has changed since the last time, if anything has and somebody listens."""
        changes = self._pool.take_changes()
        if changes:
            self._events.cache_changed(changes)

    def stop(self) -> None:
        """Nobody listens any more."""
        self._pool.ignore_changes()
