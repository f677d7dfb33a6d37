"""What a gateway knows of the workers' prefix caches, asked by request: names each prompt's blocks once.

Keeps the index fed and decides nothing. Knows workers' messages, not how they come.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpool.cluster.block_names import Naming
from twinpool.core.messages import Request
from twinpool.model.block_hash import short_names
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.prefix_index import PrefixIndex

MAX_PROMPTS = 1024  # whose names are kept, for requests that wait and for the others of their call


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """A prompt's blocks: all whose KV may be taken from a cache, as at least one token has to be computed."""

    token_ids: tuple[int, ...]  # kept so that its id() stays its own
    block_tokens: int
    chains: Sequence[Sequence[int]]  # short names, in each quality that will do


class PrefixRouting:
    """Owns a gateway's `PrefixIndex`, and the names of the prompts that it was asked about lately."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self._naming: Naming | None = None
        self._prompts: OrderedDict[tuple[int, str, bool], _Named] = OrderedDict()

    def joined(self, hello: pb.WorkerHello) -> None:
        """A worker said hello; it is to be asked for its list. Until that comes it counts as empty.

        Workers that name blocks in another way than the last one to join are found to hold nothing.
        """
        self.index.join(hello.address.worker_id)
        naming = Naming(hello.model, hello.kv_dtype, hello.block_tokens, tuple(hello.kv_qualities))
        if naming != self._naming:
            self._naming = naming
            self._prompts.clear()

    def lost(self, worker_id: str) -> None:
        """The worker is gone. Idempotent."""
        self.index.lost(worker_id)

    def told(self, worker_id: str, events: pb.CacheEvents) -> bool:
        """A worker's word on its cache. True: words are missing, and it is to be asked for its list."""
        stored, removed = events.stored[:], events.removed[:]
        return self.index.apply(worker_id, events.sequence, stored, removed, cleared=events.cleared) is not None

    def cached_tokens(self, request: Request, worker_ids: tuple[str, ...]) -> NDArray[np.int64] | None:
        """[N] leading tokens of ``request.token_ids`` whose KV each worker holds. None: nobody's would be used.

        A prompt that is to be scored is computed whole. Where KV may be lossy, a worker that would prefill for another
        holds a little less than is told here, as it uses none of that kind.
        """
        if self._naming is None or request.wants_prompt_logprobs or not self.index.num_blocks:
            return None
        named = self._named(request, self._naming)
        return named.block_tokens * self.index.matched(named.chains, worker_ids)

    def _named(self, request: Request, naming: Naming) -> _Named:
        token_ids = request.token_ids
        key = (id(token_ids), request.tenant_salt, request.lossless_kv)
        named = self._prompts.get(key)
        if named is None:
            chains = naming.chains(token_ids, request.tenant_salt, may_be_lossy=not request.lossless_kv)
            num_usable = (len(token_ids) - 1) // naming.block_tokens
            names = [short_names(chain.hashes[:num_usable]) for chain in chains]
            named = self._prompts[key] = _Named(token_ids, naming.block_tokens, names)
            if len(self._prompts) > MAX_PROMPTS:
                self._prompts.popitem(last=False)
        return named
