"""An observer that folds all that happens into one hash: two runs did the same if and only if it is equal.

Knows nothing of what it hashes but its text; on demand it writes that text to a file, a line for each event.
"""

from typing import TextIO

import xxhash

from twinpool.simulator.observer import Gauge, Observer, Steps, Transfer
from twinpool.simulator.outcome import Outcome


class EventLog(Observer):
    """Owns the hash. Floats count with every bit, as ``float.hex`` would show them."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._hash = xxhash.xxh3_128()
        self._file = file
        self.num_events = 0

    def hexdigest(self) -> str:
        """Of all events so far."""
        return self._hash.hexdigest()

    def offered(self, index: int, at_s: float) -> None:
        self._add("offered", index, at_s)

    def stepped(self, steps: Steps) -> None:
        self._add("stepped", *steps)

    def transferred(self, transfer: Transfer) -> None:
        self._add("transferred", *transfer)

    def gauged(self, gauge: Gauge) -> None:
        self._add("gauged", *gauge)

    def happened(self, at_s: float, worker: int, what: str) -> None:
        self._add("happened", at_s, worker, what)

    def ended(self, outcome: Outcome) -> None:
        self._add(
            "ended",
            outcome.index,
            outcome.ending.value,
            outcome.first_token_s,
            outcome.end_s,
            outcome.num_tokens,
            outcome.attempts,
            outcome.prefill_worker,
            outcome.decode_worker,
            outcome.why,
        )

    def _add(self, *values: object) -> None:
        line = " ".join(map(repr, values)) + "\n"
        self._hash.update(line.encode())
        self.num_events += 1
        if self._file is not None:
            self._file.write(line)
