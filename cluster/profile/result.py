"""What was measured of a worker, made into its part of a profile: forms fitted, errors told, gaps named.

Pure. Knows rows and forms; no worker and no file.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from twinpool.cluster.profile.grid import Limits
from twinpool.cluster.profile.rows import Handoffs, Row
from twinpool.core.messages import Role
from twinpool.router.estimate import LinkCost
from twinpool.router.latency_fit import (
    LARGE_BATCH,
    LONG_PREFILL_TOKENS,
    LinearFit,
    Region,
    StepRows,
    errors_by_region,
    fit_linear,
)
from twinpool.router.latency_profile import KindProfile, error_parts, link_part, part_of

MAX_WEIGHT = 4  # of a row in the fit: the median of more samples counts more
STEP_COLUMNS = ("prefill_tokens", "prefill_squares", "context_tokens", "batch", "seconds")


def kind_profile(
    role: Role, rows: Sequence[Row], handoffs: Handoffs | None, limits: Limits, kv_token_bytes: int
) -> KindProfile:
    """The part of a profile that is about workers of one role.

    Args:
        rows: at least one.
        handoffs: None where none was measured; the router's first estimate stands for their cost, and is named as such.
    """
    form = fit_linear(step_rows([row for row in rows for _ in range(min(row.samples, MAX_WEIGHT))])).form
    errors = errors_by_region(form, step_rows(rows))
    gaps = unmeasured(rows, limits)
    if handoffs is None:
        gaps.append("link: no handoff was measured")
    return KindProfile(
        role=role.value,
        kv_token_bytes=kv_token_bytes,
        steps=part_of(form),
        link=link_part(handoffs.cost if handoffs else LinkCost()),
        send_s=handoffs.send_s if handoffs else 0.0,
        join_s=handoffs.join_s if handoffs else 0.0,
        step_overhead_s=median(row.seconds - row.run_s for row in rows),
        fit_errors=error_parts(LinearFit(form, errors)),
        not_measured=gaps,
    )


def step_rows(rows: Sequence[Row]) -> StepRows:
    """The rows as columns."""
    return StepRows(*(np.array([getattr(row, name) for row in rows], np.float64) for name in STEP_COLUMNS))


def unmeasured(rows: Sequence[Row], limits: Limits) -> list[str]:
    """What the worker may be asked for, and was not: regions without a row, then how far others reach."""
    missing = [str(region) for region, chosen in step_rows(rows).regions().items() if not chosen.any()]
    found = [name for name in missing if _can_occur(name, limits)]
    reach = (
        ("prompts", "tokens", _longest_prompt(rows), limits.max_model_len - 1),
        ("batches", "sequences", int(max((row.batch for row in rows), default=0)), limits.max_running),
        ("context", "tokens together", int(max((row.context_tokens for row in rows), default=0)), limits.total_tokens),
    )
    for what, unit, seen, most in reach:
        if seen < 0.9 * most:
            found.append(f"{what} of over {seen} {unit} (up to {most} can occur)")
    return found


def _can_occur(region: str, limits: Limits) -> bool:
    match region:
        case Region.PREFILL_LONG:
            return min(limits.chunk_tokens, limits.max_model_len) >= LONG_PREFILL_TOKENS
        case Region.DECODE_LARGE:
            return limits.max_running >= LARGE_BATCH
        case _:
            return True


def _longest_prompt(rows: Sequence[Row]) -> int:
    """Where the furthest chunk ended: of a chunk [start, end), squares over tokens are start + end."""
    alone = [row for row in rows if row.prefill_tokens]
    return int(max(((row.prefill_squares / row.prefill_tokens + row.prefill_tokens) / 2 for row in alone), default=0))
