"""Writes a simulated run as a timeline that Perfetto and chrome://tracing open: workers' steps, requests' phases.

Knows the trace event format (perfetto.dev/docs/getting-started/other-formats#chrome-json-format); written as the
run goes on, so that its memory is flat.
"""

import json
from collections.abc import Sequence
from typing import IO, Any

from twinpool.simulator.observer import Observer, Steps, Transfer
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.scenario import SimulatedWorker

REQUESTS = 1  # the process that requests are drawn in; worker i is process i + 2
STEPS = 1  # the thread that a worker's steps are drawn in


class Timeline(Observer):
    """Draws the first ``num_requests`` requests, and what workers do until the last of those ended.

    The text is whole once `close` was called; until then it lacks its end.
    """

    def __init__(self, stream: IO[str], workers: Sequence[SimulatedWorker], num_requests: int = 2000) -> None:
        self._stream = stream
        self._workers = workers
        self._num_requests = num_requests
        self._unended = num_requests
        self._is_first = True
        stream.write('{"displayTimeUnit": "ms", "traceEvents": [')
        self._name(REQUESTS, "requests", 0)
        for index, worker in enumerate(workers):
            self._name(index + 2, f"{worker.worker_id} ({worker.kind.name})", index + 1)

    def close(self) -> None:
        """Write the end. The stream stays open, its owner's."""
        self._stream.write("\n]}\n")

    # --- observer -------------------------------------------------------------------------------------------------

    def stepped(self, steps: Steps) -> None:
        if self._unended:
            args = {**steps._asdict(), "seconds_each": (steps.ended_s - steps.started_s) / max(1, steps.num_steps)}
            for told in ("worker", "started_s", "ended_s"):
                del args[told]
            self._slice(steps.worker + 2, _step_name(steps), steps.started_s, steps.ended_s, args)

    def transferred(self, transfer: Transfer) -> None:
        if transfer.index < self._num_requests:
            name = f"KV of {transfer.index} to {self._workers[transfer.target].worker_id}"
            args = {"bytes": transfer.num_bytes, "exposed_s": transfer.exposed_s}
            key = f"transfer {transfer.index} {transfer.started_s}"
            self._span(transfer.source + 2, key, "transfer", name, transfer.started_s, transfer.ended_s, args)

    def happened(self, at_s: float, worker: int, what: str) -> None:
        if self._unended:
            self._write(ph="i", s="p", name=what, pid=worker + 2, tid=STEPS, ts=_us(at_s))

    def ended(self, outcome: Outcome) -> None:
        if outcome.index >= self._num_requests:
            return
        self._unended -= 1
        key, name = f"request {outcome.index}", f"request {outcome.index}: {outcome.ending}"
        self._span(REQUESTS, key, "request", name, outcome.arrival_s, outcome.end_s, self._args(outcome))
        if outcome.ending is Ending.COMPLETED:
            for phase, started_s, ended_s in _phases(outcome):
                if ended_s > started_s:
                    self._span(REQUESTS, key, "request", phase, started_s, ended_s, {})

    def _args(self, outcome: Outcome) -> dict[str, Any]:
        places = {"prefill_worker": outcome.prefill_worker, "decode_worker": outcome.decode_worker}
        return {
            "prompt_tokens": outcome.offered.prompt_tokens,
            "output_tokens": outcome.num_tokens,
            "met": outcome.met,
            "ttft_s": outcome.ttft_s,
            "tpot_s": outcome.tpot_s,
            "why": outcome.why,
            "attempts": outcome.attempts,
            **{key: None if at is None else self._workers[at].worker_id for key, at in places.items()},
        }

    # --- the format -----------------------------------------------------------------------------------------------

    def _name(self, pid: int, name: str, order: int) -> None:
        self._write(ph="M", name="process_name", pid=pid, args={"name": name})
        self._write(ph="M", name="process_sort_index", pid=pid, args={"sort_index": order})

    def _slice(self, pid: int, name: str, started_s: float, ended_s: float, args: dict[str, Any]) -> None:
        duration_us = _us(ended_s) - _us(started_s)
        self._write(ph="X", name=name, pid=pid, tid=STEPS, ts=_us(started_s), dur=duration_us, args=args)

    def _span(
        self, pid: int, key: str, category: str, name: str, started_s: float, ended_s: float, args: dict[str, Any]
    ) -> None:
        """Something that may overlap with others of its kind; those of one key are drawn in one place."""
        common = {"cat": category, "id": key, "name": name, "pid": pid, "tid": 0}
        self._write(ph="b", ts=_us(started_s), args=args, **common)
        self._write(ph="e", ts=_us(ended_s), **common)

    def _write(self, **event: Any) -> None:
        self._stream.write("\n" if self._is_first else ",\n")
        self._is_first = False
        self._stream.write(json.dumps(event, allow_nan=False))


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _step_name(steps: Steps) -> str:
    parts = [f"prefill {steps.prefill_tokens}"] if steps.prefill_tokens else []
    parts += [f"decode x{steps.batch}"] if steps.batch else []
    parts += [f"{steps.num_steps} steps"] if steps.num_steps > 1 else []
    parts += ["broken off"] if not steps.num_steps else []
    return ", ".join(parts)


def _phases(outcome: Outcome) -> list[tuple[str, float, float]]:
    """A completed request's phases; what its first token took beside them is left blank, before `queued`."""
    assert outcome.first_token_s is not None, "completed"
    first_s = outcome.first_token_s
    prefill_s = first_s - outcome.prefill_s
    queued_s = prefill_s - outcome.queued_s
    joined_s = min(outcome.end_s, first_s + outcome.handoff_s)
    return [
        ("held", outcome.arrival_s, outcome.arrival_s + outcome.held_s),
        ("queued", queued_s, prefill_s),
        ("prefill", prefill_s, first_s),
        ("handoff", first_s, joined_s),
        ("decode", joined_s, outcome.end_s),
    ]
