"""How long a client waits, phase by phase.

Knows no transport: streams ask which limit applies now and enforce it.
"""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Timeout:
    """Seconds to wait at most, in each phase of a call; all finite.

    ``connect_s`` bounds one attempt to connect and belongs to a client, not to a single call. ``first_token_s`` runs
    from sending the request, anew at each address tried. ``total_s`` covers the whole call and is told to the server.
    """

    connect_s: float = 5.0
    first_token_s: float = 60.0
    between_tokens_s: float = 30.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        """Raise ValueError unless every limit is finite and positive."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{item.name} must be a positive, finite number of seconds, not {value!r}")

    @property
    def answer_s(self) -> float:
        """The limit of a call with one short answer: connect, then wait as long as for a token."""
        return self.connect_s + self.between_tokens_s


def choose_timeout(given: Timeout | None, default: Timeout) -> Timeout:
    """``given``, or ``default`` where none was. Raises TypeError for anything else, as a plain number of seconds is."""
    if given is not None and not isinstance(given, Timeout):
        raise TypeError(f"timeout must be a Timeout, for example Timeout(total_s=5), not {given!r}")
    return given or default


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait for one message: what for, and how long at most."""

    doing: str
    limit_name: str
    seconds: float

    @property
    def phase(self) -> str:
        """The phase that a DeadlineExceeded names."""
        return f"{self.doing} ({self.limit_name}={self.seconds:g})"
