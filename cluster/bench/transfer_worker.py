"""A worker process of `twinpool bench transfer`: source or target, told what to do line by line on standard input.

`python -m twinpool.cluster.bench.transfer_worker SETUP`, SETUP being JSON; answers each line with one line of JSON, and
ends with its standard input. Measures; knows neither order nor number of the measurements.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from twinpool.cluster.bench.transfer_case import Case, Grouping
from twinpool.cluster.bench.transfer_end import CaseEnd
from twinpool.cluster.bench.transfer_links import HOST
from twinpool.cluster.bench.transfer_prefill import Prefill, measure_unit_s, start_thread
from twinpool.cluster.bench.transfer_ranks import RankedPool
from twinpool.cluster.bench.transfer_raw import RawCopy, RawGloo
from twinpool.core.errors import TwinpoolError
from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.header import Bytes, data_digest
from twinpool.model.kv_cache import TorchKVCache
from twinpool.model.kv_layout import KVCache, KVLayout

Values = dict[str, Any]
SAMPLE_BLOCKS = 4  # blocks of random values, of which those of the pool are windows


class Worker:
    """Answers one command after the other. Each method named like a command takes its fields."""

    def __init__(self, role: str, layout: Values, num_blocks: int) -> None:
        self._role = role
        self._layout = KVLayout(**layout)
        self._cache = TorchKVCache(self._layout, num_blocks, shared=True)
        self._memory = self._cache.tensor.view(torch.uint8).view(-1).numpy()
        seed = 0 if role == "source" else 1
        self.block_ids: list[int] = np.random.default_rng(seed).permutation(num_blocks).tolist()
        self._fill(touch_only=role != "source")
        self._ranked: RankedPool | None = None  # beside ``_cache``, the same KV in several ranks
        self._ends: dict[str, CaseEnd] = {}
        self._gloo: RawGloo | None = None
        self._copy: RawCopy | None = None
        self._unit_s: float | None = None

    def _fill(self, *, touch_only: bool) -> None:
        """Every block has values of its own; at the target, zeros."""
        if touch_only:
            self._memory[:] = 0
            return
        block = self._layout.block_bytes // self._cache.tensor.element_size()
        sample = torch.randn(SAMPLE_BLOCKS * block, generator=torch.Generator().manual_seed(0))
        sample = sample.to(self._cache.tensor.dtype)
        for number, values in enumerate(self._cache.tensor.view(self._cache.num_blocks, -1)):
            first = number * 7919 % (len(sample) - block)
            values.copy_(sample[first : first + block])

    def introduce(self) -> Values:
        """What the other process may want to know."""
        shared = self._cache.shared
        fd = None if shared is None else shared.fd
        return {"pid": os.getpid(), "fd": fd, "block_ids": self.block_ids}

    # --- Raw --------------------------------------------------------------------------------------------------------

    async def raw_listen(self) -> Values:
        self._gloo = RawGloo(self._memory, HOST)
        return {"port": self._gloo.listen()}

    async def raw_dial(self, port: int) -> Values:
        self._gloo = RawGloo(self._memory, HOST)
        await asyncio.to_thread(self._gloo.dial, port)
        return {}

    async def raw_meet(self, rank: int) -> Values:
        assert self._gloo is not None
        await asyncio.to_thread(self._gloo.meet, rank)
        return {}

    async def raw_post(self, num_bytes: int) -> Values:
        assert self._gloo is not None
        self._gloo.post_receive(num_bytes)
        return {}

    async def raw_receive(self) -> Values:
        assert self._gloo is not None
        return {"at_s": await asyncio.to_thread(self._gloo.receive)}

    async def raw_send(self, num_bytes: int) -> Values:
        assert self._gloo is not None
        return {"at_s": await asyncio.to_thread(self._gloo.send, num_bytes)}

    async def raw_map(self, pid: int, fd: int) -> Values:
        self._copy = RawCopy(self._memory, pid, fd)
        return {}

    async def raw_copy(self, num_bytes: int) -> Values:
        assert self._copy is not None
        return {"seconds": await asyncio.to_thread(self._copy.copy, num_bytes)}

    async def raw_close(self) -> Values:
        if self._gloo is not None:
            self._gloo.close()
        self._gloo = self._copy = None
        return {}

    # --- Handoffs ---------------------------------------------------------------------------------------------------

    async def open(self, case: Values) -> Values:
        made = Case(**case)
        pool = self._pool(made.source_tp if self._role == "source" else made.target_tp)
        end = self._ends[made.name] = CaseEnd(self._role, made, pool, self.block_ids)
        await end.start()
        return {"address": asdict(end.address)}

    def _pool(self, tensor_parallel: int) -> KVCache:
        """The KV, in so many ranks; one number of ranks at a time beside 1."""
        if tensor_parallel == 1:
            return self._cache
        if self._ranked is None or self._ranked.shape.tensor_parallel != tensor_parallel:
            self._ranked = RankedPool(self._layout, tensor_parallel, self._cache.num_blocks)
            if self._role == "source":
                for block in range(self._cache.num_blocks):
                    self._ranked.write(block, self._read(self._cache, block))
        return self._ranked

    def _read(self, pool: KVCache, block: int) -> Bytes:
        out = np.empty(self._layout.block_bytes, dtype=np.uint8)
        pool.gather(0, self._layout.num_layers, np.array([block], dtype=np.int64), out)
        return out

    async def close(self, name: str) -> Values:
        await self._ends.pop(name).close()
        if not self._ends:
            self._ranked = None
        return {}

    async def expect(self, name: str, request_id: str, num_tokens: int, source: Values) -> Values:
        self._ends[name].expect(request_id, num_tokens, WorkerAddress(**source))
        return {}

    async def adopted(self, name: str, request_id: str) -> Values:
        at_s, seal = await self._ends[name].adopted(request_id)
        return {"at_s": at_s, "wire_s": seal.wire_s, "exposed_s": seal.exposed_s, "kv_bytes": seal.kv_bytes}

    async def hand_over(
        self,
        name: str,
        request_id: str,
        num_tokens: int,
        target: Values,
        grouping: Values,
        streaming: bool,
        prefill: Values | None,
    ) -> Values:
        groups = Grouping(**grouping)
        spans = groups.spans(self._layout, num_tokens, streaming=streaming)
        produced = None if prefill is None else self._prefill(groups, num_tokens, **prefill)
        return await self._ends[name].hand_over(request_id, num_tokens, WorkerAddress(**target), spans, produced)

    async def prefill(self, num_tokens: int, grouping: Values, prefill: Values) -> Values:
        """The same prefill, and nothing else."""
        produced = self._prefill(Grouping(**grouping), num_tokens, **prefill)
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        begun_s = loop.time()

        def work() -> None:
            produced.run(lambda _: loop.call_soon_threadsafe(lambda: None))
            loop.call_soon_threadsafe(lambda: over.set_result(loop.time()))

        start_thread(work)
        return {"seconds": await over - begun_s}

    def _prefill(self, grouping: Grouping, num_tokens: int, bytes_per_s: float, computes: bool) -> Prefill:
        if computes and self._unit_s is None:
            self._unit_s = measure_unit_s()
        spans = grouping.spans(self._layout, num_tokens, streaming=True)
        seconds = [span.num_bytes(self._layout) / bytes_per_s for span in spans]
        return Prefill(seconds, self._unit_s if computes else None)

    async def digest(self, num_tokens: int, tensor_parallel: int) -> Values:
        """Of a request's KV as it lies here, in the order of the model."""
        pool, digests = self._pool(tensor_parallel), bytearray()
        for block in self.block_ids[: self._layout.num_blocks(num_tokens)]:
            digests += data_digest(self._read(pool, block))
        return {"digest": data_digest(np.frombuffer(bytes(digests), dtype=np.uint8)).hex()}

    async def clear(self) -> Values:
        """Forget all KV."""
        self._memory[:] = 0
        if self._ranked is not None:
            self._ranked.clear()
        return {}

    async def stop(self) -> None:
        """Leave nothing behind."""
        await self.raw_close()
        for name in list(self._ends):
            await self.close(name)


async def serve(setup: Values) -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    worker = Worker(**setup)
    _say(worker.introduce())
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            fields = json.loads(line)
            command: Callable[..., Awaitable[Values]] = getattr(worker, fields.pop("do"))
            try:
                async with asyncio.timeout(fields.pop("timeout_s")):
                    _say(await command(**fields))
            except (TwinpoolError, OSError, RuntimeError, TimeoutError, ValueError) as error:
                _say({"error": f"{type(error).__name__}: {error}"})
    finally:
        await worker.stop()


def _say(values: Values) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
