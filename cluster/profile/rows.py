"""What was measured: steps and what they were made of, many of them summed up as rows to fit, and handoffs.

Pure. Knows batches and arithmetic; no clock and no form.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from twinpool.model.batch import Batch
from twinpool.router.estimate import LinkCost

MIN_DECODE_SAMPLES = 4


class TimedStep(NamedTuple):
    """One step that computed something. Tokens and squares are as ``router.estimate.StepForm`` has them."""

    started_s: float  # the worker's clock
    seconds: float  # from the engine's first look at its queues to its readiness for the next step
    run_s: float  # of these, in the runner
    prefill_tokens: int
    prefill_squares: int
    num_prompts: int
    context_tokens: int  # of decoded sequences, with the token of this step
    batch: int


def describe(batch: Batch) -> tuple[int, int, int, int, int]:
    """``batch`` as a step form sees it: prefill tokens, squares, prompts; context tokens and number of decodes.

    One new token after others is a decode, anything else a chunk of prefill.
    """
    new = np.diff(batch.cu_seqlens).astype(np.int64)
    ends = batch.context_lens.astype(np.int64)
    decodes = (new == 1) & (ends > 1)
    chunks, chunk_ends = new[~decodes], ends[~decodes]
    squares = int((chunk_ends**2 - (chunk_ends - chunks) ** 2).sum())
    return int(chunks.sum()), squares, len(chunks), int(ends[decodes].sum()), int(decodes.sum())


@dataclass(frozen=True, slots=True)
class Row:
    """Steps of one kind, run several times; what they are made of as in ``router.estimate.StepForm``."""

    prefill_tokens: float
    prefill_squares: float
    context_tokens: float  # mean
    batch: float
    seconds: float  # median
    run_s: float  # median: of these, in the runner
    samples: int


@dataclass(frozen=True, slots=True)
class HandoffRow:
    """Handoffs of one size, all of whose KV was there when they began; medians."""

    num_tokens: int
    kv_bytes: int
    handoff_s: float  # from the first token to the begin of the step that the sequence decodes in
    wire_s: float  # that some group was on the link
    samples: int


@dataclass(frozen=True, slots=True)
class Handoffs:
    """What moving KV costs. ``cost`` is made of ``rows`` and of handoffs of short prompts that were streamed."""

    cost: LinkCost
    link: str
    rows: tuple[HandoffRow, ...]
    send_s: float  # what the source's engine does for a handoff beside computing the prompt
    join_s: float  # what the target's engine does for a sequence that arrives, and ends, beside decoding it


def sum_up(steps: Iterable[TimedStep], least: int) -> list[Row]:
    """Rows of one burst: steps that were made of the same are one row, whose context is the mean.

    Args:
        least: samples that a row with a prompt's chunk needs; one without needs ``MIN_DECODE_SAMPLES``.
    """
    alike: dict[tuple[int, ...], list[TimedStep]] = defaultdict(list)
    for step in steps:
        alike[step.prefill_tokens, step.prefill_squares, step.num_prompts, step.batch].append(step)
    return [
        Row(
            prefill_tokens=float(same[0].prefill_tokens),
            prefill_squares=float(same[0].prefill_squares),
            context_tokens=fmean(step.context_tokens for step in same),
            batch=float(same[0].batch),
            seconds=median(step.seconds for step in same),
            run_s=median(step.run_s for step in same),
            samples=len(same),
        )
        for same in alike.values()
        if len(same) >= (least if same[0].prefill_tokens else MIN_DECODE_SAMPLES)
    ]
