"""Carries what the engine thread reports to the control thread."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from twinpool.cluster.engine_events import Load
from twinpool.kv_transfer.plan import Span
from twinpool.model.sequence import Key, Token


class Reports(Protocol):
    """EngineEvents as they arrive on the control thread."""

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None: ...
    def group_ready(self, key: Key, span: Span) -> None: ...
    def computed(self, key: Key, first_token: int, at_s: float) -> None: ...
    def cancel_source(self, key: Key) -> None: ...
    def demote(self, key: Key) -> None: ...
    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None: ...
    def preempted(self, key: Key) -> None: ...
    def engine_failed(self, key: Key, reason: str) -> None: ...
    def stepped(self, tokens: list[Token], load: Load) -> None: ...
    def cache_listed(self, gateway_id: str, hashes: list[bytes]) -> None: ...
    def cache_changed(self, changes: dict[bytes, bool]) -> None: ...
    def crashed(self, error: Exception) -> None: ...


class Bridge:
    """Engine thread to control thread (engine.EngineEvents)."""

    def __init__(self, worker: Reports, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = worker
        self._loop = loop

    def _hop(self, call: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def begin_source(self, key: Key, num_tokens: int, block_ids: list[int]) -> None:
        self._hop(self._worker.begin_source, key, num_tokens, block_ids)

    def group_ready(self, key: Key, span: Span) -> None:
        self._hop(self._worker.group_ready, key, span)

    def computed(self, key: Key, first_token: int, at_s: float) -> None:
        self._hop(self._worker.computed, key, first_token, at_s)

    def cancel_source(self, key: Key) -> None:
        self._hop(self._worker.cancel_source, key)

    def demote(self, key: Key) -> None:
        self._hop(self._worker.demote, key)

    def bound(self, key: Key, block_ids: list[int], skip_blocks: int) -> None:
        self._hop(self._worker.bound, key, block_ids, skip_blocks)

    def preempted(self, key: Key) -> None:
        self._hop(self._worker.preempted, key)

    def failed(self, key: Key, reason: str) -> None:
        self._hop(self._worker.engine_failed, key, reason)

    def stepped(self, tokens: list[Token], load: Load) -> None:
        self._hop(self._worker.stepped, tokens, load)

    def cache_listed(self, gateway_id: str, hashes: list[bytes]) -> None:
        self._hop(self._worker.cache_listed, gateway_id, hashes)

    def cache_changed(self, changes: dict[bytes, bool]) -> None:
        self._hop(self._worker.cache_changed, changes)

    def crashed(self, error: Exception) -> None:
        self._hop(self._worker.crashed, error)
