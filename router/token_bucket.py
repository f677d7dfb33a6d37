"""How many tokens a tenant may still have at a moment: so many per second, and so many at once.

Knows no tenant and no request; ``now`` is seconds of a clock that may jump.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Fills at ``tokens_per_s`` up to ``burst_tokens``. What is taken may leave a debt, which is paid before all else.

    A clock that goes back fills nothing until it has passed the latest moment seen, so no second counts twice.
    """

    tokens_per_s: float  # over 0
    burst_tokens: float  # over 0
    level: float
    filled_at: float

    @classmethod
    def full(cls, tokens_per_s: float, burst_tokens: float, now: float) -> "TokenBucket":
        """As it is for someone who has taken nothing for long."""
        return cls(tokens_per_s, burst_tokens, burst_tokens, now)

    def wait_s(self, num_tokens: float, now: float) -> float:
        """How long until so many may be taken; 0: now. More than the burst may be taken when the bucket is full."""
        self._fill(now)
        return max(0.0, min(num_tokens, self.burst_tokens) - self.level) / self.tokens_per_s

    def take(self, num_tokens: float, now: float) -> None:
        """Take tokens, whether they are there or not."""
        self._fill(now)
        self.level -= num_tokens

    def is_full(self, now: float) -> bool:
        """Whether it is as if nothing had ever been taken."""
        self._fill(now)
        return self.level >= self.burst_tokens

    def _fill(self, now: float) -> None:
        if now > self.filled_at:
            self.level = min(self.burst_tokens, self.level + (now - self.filled_at) * self.tokens_per_s)
            self.filled_at = now
