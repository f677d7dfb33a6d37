"""How fast something moves bytes while it moves any: a mean over about its last seconds of work.

Pure. Knows neither what moves nor the time.
"""

HALF_LIFE_S = 2.0  # of busy time: what was measured so long ago counts half


class Throughput:
    """Bytes for each busy second. Pieces may overlap; time that several share counts once, for all of them."""

    def __init__(self) -> None:
        self._num_bytes = 0.0
        self._busy_s = 0.0
        self._busy_until_s: float | None = None

    def add(self, num_bytes: int, started_s: float, ended_s: float) -> None:
        """So many bytes took this time; pieces come in about the order of their ends."""
        until_s = started_s if self._busy_until_s is None else self._busy_until_s
        busy_s = max(0.0, ended_s - max(started_s, until_s))
        keep = 0.5 ** (busy_s / HALF_LIFE_S)
        self._num_bytes = self._num_bytes * keep + num_bytes
        self._busy_s = self._busy_s * keep + busy_s
        self._busy_until_s = max(until_s, ended_s)

    def bytes_per_s(self, since_s: float) -> float | None:
        """The rate; None when nothing was measured at ``since_s`` or later."""
        if self._busy_until_s is None or self._busy_until_s < since_s or not self._busy_s or not self._num_bytes:
            return None
        return self._num_bytes / self._busy_s
