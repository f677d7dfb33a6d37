"""Measures what prefix routing costs: the gateway's index in time and memory, and a worker's news of its cache by step.

Decides nothing. Prints one line for each quantity; times are medians unless the line says otherwise.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize

from twinpool.cluster.cache_feed import CacheFeed
from twinpool.model.block_hash import block_hashes, root_hash, short_names
from twinpool.model.block_pool import BlockPool, RefKind
from twinpool.protos.twinpool.v1 import worker_pb2 as pb
from twinpool.router.prefix_index import PrefixIndex

CHAIN = 128  # blocks of a prompt of 2k tokens
BLOCK_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--step-blocks", type=int, default=32, help="that one engine step caches, each for an old one")
    args = parser.parse_args()
    measure_index(args.workers, args.blocks)
    measure_names()
    measure_step(args.step_blocks)


def tell(what: str, value: float, unit: str) -> None:
    print(f"{what:52} {value:12.3f} {unit}")


def median_us(call: Callable[[], object], num: int = 1000) -> float:
    times = []
    for _ in range(num):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


class Filled:
    """An index of so many workers, and the chains in it."""

    def __init__(self, num_workers: int, num_blocks: int) -> None:
        self.index = PrefixIndex(num_blocks)
        self.workers = tuple(f"worker-{number:04}" for number in range(num_workers))
        self._sequences = dict.fromkeys(self.workers, 0)
        self._random = random.Random(0)
        for worker_id in self.workers:
            self.index.join(worker_id)
            self.apply(worker_id, [])

    def chain(self) -> list[int]:
        return [self._random.getrandbits(64) for _ in range(CHAIN)]

    def apply(self, worker_id: str, stored: list[int], removed: list[int] | tuple[()] = ()) -> None:
        self._sequences[worker_id] += 1
        sequence = self._sequences[worker_id]
        self.index.apply(worker_id, sequence, stored, removed, cleared=sequence == 1)


def measure_index(num_workers: int, num_blocks: int) -> None:
    filled = Filled(num_workers, num_blocks)
    index, workers = filled.index, filled.workers
    chains = [filled.chain() for _ in range(200)]
    before, start, spent_s = resident_bytes(), time.perf_counter(), 0.0
    for number in range(num_blocks // CHAIN):
        chain = chains[number] if number < len(chains) else filled.chain()
        start = time.perf_counter()
        filled.apply(workers[number % num_workers], chain)
        spent_s += time.perf_counter() - start
    tell(f"index: blocks of {num_workers} workers", index.num_blocks, "")
    tell("index: memory", (resident_bytes() - before) / 1e6, "MB")
    tell("index: memory of a block", (resident_bytes() - before) / index.num_blocks, "bytes")
    tell("index: blocks stored in a second", index.num_blocks / spent_s, "")
    for number, share in enumerate((1, num_workers // 10, num_workers)):
        chain = chains[number]
        for worker_id in workers[:share]:
            filled.apply(worker_id, chain)
        found_us = median_us(lambda chain=chain: index.matched([chain], workers))  # type: ignore[misc]
        tell(f"index: look-up of {CHAIN} blocks that {share or 1} hold", found_us, "us")
    _measure_changes(filled, chains[100:])


def _measure_changes(filled: Filled, chains: list[list[int]]) -> None:
    """Blocks leave and others come while the index is full."""
    start = time.perf_counter()
    for number, chain in enumerate(chains):
        worker_id = filled.workers[number % len(filled.workers)]
        filled.apply(worker_id, [], chain)
        filled.apply(worker_id, chain)
    tell("index: changes in a second", 2 * CHAIN * len(chains) / (time.perf_counter() - start), "")
    times = []
    for number in range(2000):
        chain = filled.chain()
        start = time.perf_counter()
        filled.apply(filled.workers[number % len(filled.workers)], chain)
        times.append(time.perf_counter() - start)
    tell("index: longest of 2000 messages when full", max(times) * 1e3, "ms")
    tell("index: blocks given up", filled.index.num_evicted, "")


def measure_names() -> None:
    token_ids = tuple(range(CHAIN * BLOCK_TOKENS))
    root = root_hash(tenant_salt="", model="m", dtype="bfloat16", codec="raw")
    named_us = median_us(lambda: short_names(block_hashes(token_ids, BLOCK_TOKENS, root)), 200)
    tell(f"names of a prompt of {len(token_ids)} tokens", named_us, "us")


def measure_step(step_blocks: int) -> None:
    """Steps that cache blocks, each in place of an old one, with and without a gateway that listens."""
    silent_us = median_us(_Step(step_blocks, listens=False).run)
    told_us = median_us(_Step(step_blocks, listens=True).run)
    tell(f"step: {step_blocks} blocks cached and evicted, nobody listens", silent_us, "us")
    tell("step: more where they are told, on the engine's thread", told_us - silent_us, "us")
    step = _Step(step_blocks, listens=True)
    step.run()
    changes = step.changes
    feed = CacheFeed()
    feed.begin([])
    feed.fill(pb.CacheEvents())

    def message() -> bytes:
        feed.change(dict(zip(short_names(list(changes)), changes.values(), strict=True)))
        output = pb.StepOutput()
        feed.fill(output.cache)
        return output.SerializeToString()

    tell("step: message for one gateway, on the control thread", median_us(message), "us")
    tell("step: its size", len(message()), "bytes")


class _Step:
    """A pool that is full of cached blocks."""

    def __init__(self, step_blocks: int, *, listens: bool) -> None:
        self._pool = BlockPool(64 * step_blocks, BLOCK_TOKENS, prefix_cache=True)
        self._step_blocks = step_blocks
        self._number = 0
        self.changes: dict[bytes, bool] = {}
        for _ in range(65):
            self.run()
        if listens:
            self._pool.cached_hashes()

    def run(self) -> None:
        pool = self._pool
        block_ids = pool.allocate(self._step_blocks, RefKind.SEQUENCE)
        for block_id in block_ids:
            self._number += 1
            pool.publish(block_id, self._number.to_bytes(16, "little"))
        pool.release(block_ids, RefKind.SEQUENCE)
        self.changes = pool.take_changes()


if __name__ == "__main__":
    main()
