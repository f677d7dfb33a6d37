"""The counts of one run of a batch, and the words and values that tell of them.

Pure: ``now`` is an argument. Printing is progress.py's business.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from twinpool.cluster.batch.line import Key, Line

MAX_UNFINISHED_TOLD = 10


@dataclass(slots=True)
class Tally:
    """Counted by the run; ``total`` and ``before`` do not change."""

    total: int
    before: int  # answered by earlier runs, problems included
    failed: int  # of these and those of this run: lines with a problem
    started_at: float
    answered: int = 0  # by this run, problems included
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unfinished: dict[Key, str] = field(default_factory=dict)  # tried, and left for another run
    stopped: str = ""  # why the run ended before its time
    note: str = ""  # what it waits for now

    @property
    def done(self) -> int:
        """Lines with an answer or a problem, of this run and earlier ones."""
        return self.before + self.answered

    @property
    def missing(self) -> int:
        """Lines that are left for another run."""
        return self.total - self.done

    @property
    def exit_code(self) -> int:
        """0 when every line has an answer, 1 when some have a problem instead or are left."""
        return int(self.missing > 0 or self.failed > 0)

    def tokens_per_s(self, now: float) -> float:
        """Tokens generated per second of this run."""
        elapsed = now - self.started_at
        return self.completion_tokens / elapsed if elapsed > 0 else 0.0

    def leave(self, line: Line, why: str) -> None:
        """Note that a line is left for another run."""
        self.unfinished[line.key] = why


def start_tally(keys: Collection[Key], answered: Mapping[Key, bool], now: float) -> Tally:
    """Count what earlier runs did. Problems of lines that the input no longer has so do not count."""
    mine = [is_ok for key, is_ok in answered.items() if key in keys]
    return Tally(total=len(keys), before=len(mine), failed=mine.count(False), started_at=now)


def as_line(tally: Tally, now: float) -> str:
    """Progress, in one line."""
    line = f"{tally.done}/{tally.total} done, {tally.failed} with an error, {tally.tokens_per_s(now):.0f} tokens/s"
    return f"{line}; {tally.note}" if tally.note else line


def as_values(tally: Tally, now: float) -> dict[str, Any]:
    """The stable keys of ``--json``."""
    return {
        "requests": tally.total,
        "answered": tally.answered,
        "answered_before": tally.before,
        "failed": tally.failed,
        "missing": tally.missing,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "tokens_per_s": round(tally.tokens_per_s(now), 1),
        "wall_s": round(now - tally.started_at, 3),
        "stopped": tally.stopped or None,
        "unfinished": [{"key": key, "error": why} for key, why in list(tally.unfinished.items())[:MAX_UNFINISHED_TOLD]],
    }


def as_summary(tally: Tally, now: float) -> str:
    """What a run did, in a few lines."""
    wall_s = now - tally.started_at
    before = f"; {tally.before} of them done by earlier runs" if tally.before else ""
    counts = f"{tally.done - tally.failed} answered, {tally.failed} with an error, {tally.missing} left"
    lines = [
        f"{tally.total} requests: {counts}{before}",
        f"{tally.prompt_tokens} prompt tokens and {tally.completion_tokens} generated in {wall_s:.1f} s, "
        f"{tally.tokens_per_s(now):.0f} generated tokens/s",
    ]
    if tally.failed:
        lines.append(
            "what is wrong with a request is in the output, under error; delete that line to have it tried again"
        )
    if tally.stopped:
        lines.append(f"ended early: {tally.stopped}")
    told = list(tally.unfinished.items())[:MAX_UNFINISHED_TOLD]
    lines += [f"left for another run: {key!r}: {why}" for key, why in told]
    if tally.missing:
        lines.append(f"run it again for the {tally.missing} that are left")
    return "\n".join(lines)
