"""A worker as the conformance suite sees it: a KV cache, and ends of links that do what they are told.

Either in this process, or in one of its own that can be killed. As a program it is the latter: reads one JSON array a
line, ``[method, arguments...]``, and answers each with one line.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import xxhash

from twinpool.kv_transfer.device_pool import DevicePool
from twinpool.kv_transfer.link import Link, Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import HeadRange

from .conformance_kinds import Setting, find_kind
from .fakes import WAIT_S, Ears, NumpyCache, make_group

ROOT = Path(__file__).resolve().parent.parent.parent

Event = tuple[object, ...]


class WorkerDied(Exception):
    """The process is gone."""


class CountingCache(NumpyCache):
    """Knows how much was read of it."""

    num_gathered = 0

    def gather(self, first_layer: int, end_layer: int, block_ids: Any, out: Any, heads: Any = None) -> None:
        self.num_gathered += len(out)
        super().gather(first_layer, end_layer, block_ids, out, heads)


class DeviceCache(CountingCache):
    """Its pool is a tensor on a device, or on what stands in for one."""

    pool: Any

    def __init__(self, seed: int, allocate: Callable[[int], torch.Tensor]) -> None:
        super().__init__(seed=seed)
        contents = torch.from_numpy(self.pool)
        self.pool = allocate(contents.numel()).view(contents.shape)
        self.pool.copy_(contents)
        self.device_pool = DevicePool(self.pool, 0)

    def read(self, span: Span, block_ids: list[int], heads: HeadRange | None = None) -> Any:
        return self._part(span.first_layer, span.end_layer, heads)[block_ids].cpu().numpy()


class LocalWorker:
    """In this process. Ends are named by number; groups by ``seq, span, block ids, request id, epoch``."""

    def __init__(self, kind: str, setting: Setting) -> None:
        self.setting = setting
        self._kind = find_kind(kind)
        self._ends: list[tuple[Any, Ears]] = []
        self._ids: list[weakref.ref[Any]] = []
        self.cache = CountingCache(seed=setting.index, layout=self._kind.layout, shared=self._kind.shares_memory)
        if self._kind.allocate is not None:
            self.cache = DeviceCache(setting.index, self._kind.allocate)
        self.links = self._kind.make(self.cache, setting)

    def listen(self) -> tuple[int, Ticket]:
        ears = Ears()
        link, ticket = self.links.listen(ears)
        return self._add(link, ears), ticket

    def dial(self, ticket: Ticket) -> int:
        ears = Ears()
        return self._add(self.links.dial(ticket, ears), ears)

    def _add(self, link: Link, ears: Ears) -> int:
        self._ends.append((link, ears))
        return len(self._ends) - 1

    def send(self, end: int, seq: int, span: Span, ids: list[int], *more: Any) -> None:
        """``more`` as in fakes.make_group; so for ``receive``."""
        self._ends[end][0].send(self._group(seq, span, ids, *more))

    def receive(self, end: int, seq: int, span: Span, ids: list[int] | None, *more: Any) -> None:
        self._ends[end][0].receive(self._group(seq, span, ids, *more))

    def _group(self, seq: int, span: Span, ids: list[int] | None, *more: Any) -> Any:
        group = make_group(seq, Span(*span) if isinstance(span, list) else span, ids, *more)
        if group.block_ids is not None:
            self._ids.append(weakref.ref(group.block_ids))
        return group

    def next(self, end: int) -> Event:
        """The end's next event, once there is one."""
        return self._ends[end][1].next()

    def until(self, end: int, name: str) -> Event:
        """The end's next event of this name."""
        return self._ends[end][1].until(name)

    def heard(self, end: int) -> list[Event]:
        """All events of an end so far."""
        return list(self._ends[end][1].heard)

    def close(self, end: int) -> None:
        self._ends[end][0].close()

    def join(self, end: int) -> bool:
        done: bool = self._ends[end][0].join(WAIT_S)
        return done

    def close_all(self) -> None:
        for end in range(len(self._ends)):
            self.close(end)
        for end in range(len(self._ends)):
            assert self.join(end)

    def damage(self, part: str) -> None:
        self._kind.damage(self.links, self.setting, part)

    def fingerprint(self, ids: list[int], span: Span, heads: list[int] | None = None) -> str:
        """Of these blocks' layers and heads."""
        span = Span(*span) if isinstance(span, list) else span
        some = None if heads is None else HeadRange(*heads)
        return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self.cache.read(span, ids, some)))

    def contents(self) -> str:
        """Of the whole pool, in hex."""
        return bytes(self.cache.pool.data).hex()

    def fill(self, ids: list[int], value: int) -> None:
        """Use the blocks for something else."""
        self.cache.pool[ids] = value

    def num_gathered(self) -> int:
        return self.cache.num_gathered

    def num_open_files(self) -> int:
        return len(os.listdir(f"/proc/{os.getpid()}/fd"))  # noqa: PTH208 - counted often

    def num_threads(self) -> int:
        """Of this process, those that libraries started included."""
        return len(os.listdir(f"/proc/{os.getpid()}/task"))  # noqa: PTH208

    def num_groups_held(self) -> int:
        """Groups given to links, whose block ids something still holds."""
        gc.collect()
        return sum(ref() is not None for ref in self._ids)


class RemoteWorker:
    """A LocalWorker in a process of its own, which takes seconds to begin; only the first call waits for it."""

    def __init__(self, kind: str, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        self.kind = kind
        command = [sys.executable, "-m", "tests.kv_transfer.conformance_worker", kind]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )

    def settle(self, setting: Setting) -> None:
        """Begin anew: another cache, other links."""
        self._ask("settle", setting.index, setting.open_timeout_s, setting.chunk_timeout_s)

    def listen(self) -> tuple[int, Ticket]:
        end, host, port, secret = self._ask("listen")
        return end, Ticket(host, port, bytes.fromhex(secret))

    def dial(self, ticket: Ticket) -> int:
        end: int = self._ask("dial", ticket.host, ticket.port, ticket.secret.hex())
        return end

    def next(self, end: int) -> Event:
        return tuple(self._ask("next", end))

    def until(self, end: int, name: str) -> Event:
        return tuple(self._ask("until", end, name))

    def heard(self, end: int) -> list[Event]:
        return [tuple(event) for event in self._ask("heard", end)]

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *arguments: self._ask(method, *arguments)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _ask(self, *call: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        plain = [[x.first_layer, x.end_layer, x.first_block, x.end_block] if isinstance(x, Span) else x for x in call]
        try:
            self.process.stdin.write(json.dumps(plain).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise WorkerDied(f"{self.kind} worker: exit status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["is"]


class _Program:
    """The far end of RemoteWorker."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._worker: LocalWorker | None = None

    def answer(self, method: str, *arguments: Any) -> object:
        match method, arguments:
            case "settle", [index, open_timeout_s, chunk_timeout_s]:
                if self._worker is not None:
                    self._worker.close_all()
                self._worker = LocalWorker(self._kind, Setting(index, open_timeout_s, chunk_timeout_s))
                return None
            case "listen", []:
                assert self._worker is not None
                end, ticket = self._worker.listen()
                return [end, ticket.host, ticket.port, ticket.secret.hex()]
            case "dial", [host, port, secret]:
                assert self._worker is not None
                return self._worker.dial(Ticket(host, port, bytes.fromhex(secret)))
        answer: object = getattr(self._worker, method)(*arguments)
        return answer


def main() -> None:
    program = _Program(sys.argv[1])
    for line in sys.stdin:
        answer: Mapping[str, object]
        try:
            answer = {"is": program.answer(*json.loads(line))}
        except Exception as error:  # noqa: BLE001 - the asker raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
