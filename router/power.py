"""What a worker draws, and what a power cap does to it.

Knows no hardware (hardware.py has the sheets) and adds nothing up: energy is the report's business.
"""

from dataclasses import dataclass

from twinpool.router.estimate import Numbers, StepForm


@dataclass(frozen=True, slots=True)
class PowerForm:
    """Watts of a whole worker, all its GPUs together.

    Power grows with how full a step is, and is flat from ``full_prefill_tokens`` and ``full_batch`` on (Splitwise,
    ISCA'24, section III-E: prefill reaches the GPUs' limit with the batch, decode hardly moves).
    """

    idle_w: float
    prefill_w: float  # in a step of full_prefill_tokens or more
    decode_w: float  # in a step that decodes full_batch sequences or more
    prefill_least_w: float | None = None  # in a step of one token; None: idle_w
    decode_least_w: float | None = None  # in a step of one sequence; None: idle_w
    full_prefill_tokens: int = 2048
    full_batch: int = 64
    cap_w: float = float("inf")  # never more than this

    def step_watts(self, prefill_tokens: int, batch: int) -> float:
        """Power during a step of so many prompt tokens and decoded sequences; with neither, the idle power."""
        prefill_w = _ramp(self.idle_w, self.prefill_least_w, self.prefill_w, prefill_tokens, self.full_prefill_tokens)
        decode_w = _ramp(self.idle_w, self.decode_least_w, self.decode_w, batch, self.full_batch)
        return min(self.cap_w, max(prefill_w, decode_w))


def _ramp(idle_w: float, least_w: float | None, full_w: float, amount: int, full_amount: int) -> float:
    if amount <= 0:
        return idle_w
    least_w = idle_w if least_w is None else least_w
    return least_w + (full_w - least_w) * min(1.0, amount / full_amount)


@dataclass(frozen=True, slots=True)
class CappedForm:
    """The steps of a worker under a power cap: prefill, which arithmetic bounds, slows down; decode does not.

    Splitwise (ISCA'24, section III-E) measured that halving an H100's power hardly touches the token phase. By how much
    the prompt phase slows is an argument; the original simulator's capped rows have 1.3.
    """

    form: StepForm
    prefill_factor: float

    def seconds(
        self, prefill_tokens: Numbers, prefill_squares: Numbers, context_tokens: Numbers, batch: Numbers
    ) -> Numbers:
        mixed_s = self.form.seconds(prefill_tokens, prefill_squares, context_tokens, batch)
        alone_s = self.form.seconds(prefill_tokens * 0, prefill_squares * 0, context_tokens, batch)
        return alone_s + (mixed_s - alone_s) * self.prefill_factor

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:
        return self.form.decode_seconds(context_tokens, batch, num_steps)
