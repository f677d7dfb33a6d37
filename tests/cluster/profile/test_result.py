"""Measured rows become a form that is the shape's own, with errors by region and the gaps named."""

from itertools import product

import numpy as np
import pytest

from twinpool.cluster.profile.grid import Limits
from twinpool.cluster.profile.result import kind_profile, unmeasured
from twinpool.cluster.profile.rows import Handoffs, Row
from twinpool.core.messages import Role
from twinpool.model.modelled_shape import StepLatency, modelled_shape
from twinpool.router.estimate import LinkCost
from twinpool.router.latency_profile import LinearPart

LIMITS = Limits(max_model_len=2048, chunk_tokens=512, max_running=64, total_tokens=100_000, block_tokens=16)
HANDOFFS = Handoffs(LinkCost(2e-3, 1e9), "shm", (), send_s=1e-4, join_s=5e-4)
CURVED = StepLatency(5e-3, 5e-5, 1e-8, 1e-2, 1e-6, 1e-4)


def rows_of(latency: StepLatency) -> list[Row]:
    """Steps as that latency has them: chunks at several places, decode batches, and both at once."""
    rows = []
    for (start, tokens), (batch, context) in product(
        ((0, 0), (0, 16), (0, 512), (1024, 512), (2031, 16)), ((0, 0), (1, 40), (8, 900), (64, 64), (48, 1500))
    ):
        if not tokens and not batch:
            continue
        new = np.array([tokens] * bool(tokens) + [1] * batch)
        ends = np.array([start + tokens] * bool(tokens) + [context] * batch)
        seconds = latency.step_s(new, ends)
        squares = (start + tokens) ** 2 - start**2
        rows.append(Row(float(tokens), float(squares), float(batch * context), float(batch), seconds, seconds, 5))
    return rows


@pytest.mark.parametrize(
    "latency", [modelled_shape("modelled:paced").latency, modelled_shape("modelled:a100-13b").latency, CURVED]
)
def test_the_fit_of_a_modelled_model_is_its_shape(latency: StepLatency) -> None:
    found = kind_profile(Role.PREFILL, rows_of(latency), HANDOFFS, LIMITS, kv_token_bytes=64)
    assert isinstance(found.steps, LinearPart)
    for name in ("prefill_a_s", "prefill_b_s", "prefill_c_s", "decode_alpha_s", "decode_beta_s", "decode_gamma_s"):
        assert getattr(found.steps, name) == pytest.approx(getattr(latency, name), rel=1e-6, abs=1e-12)
    assert {"prefill_short", "decode_small", "decode_large", "mixed"} <= set(found.fit_errors)
    assert all(error.p90 < 1e-6 for error in found.fit_errors.values())
    assert (found.send_s, found.join_s, found.link.latency_s) == (1e-4, 5e-4, 2e-3)


def test_a_row_that_was_seen_often_counts_more() -> None:
    def gamma(samples: int) -> float:
        honest = [Row(0.0, 0.0, 0.0, float(batch), 0.01 + 1e-4 * batch, 0.0, samples) for batch in (1, 8, 32, 64)]
        odd = Row(0.0, 0.0, 0.0, 64.0, 0.05, 0.0, 1)
        found = kind_profile(Role.DECODE, [*honest, odd], HANDOFFS, LIMITS, kv_token_bytes=64)
        assert isinstance(found.steps, LinearPart)
        return found.steps.decode_gamma_s

    assert abs(gamma(100) - 1e-4) < abs(gamma(1) - 1e-4)


def test_what_was_not_measured_is_named() -> None:
    rows = [row for row in rows_of(CURVED) if not (row.prefill_tokens and row.batch) and row.batch < 16]
    found = unmeasured(rows, LIMITS)
    assert {"mixed", "decode_large"} <= set(found)
    assert "prefill_short" not in found
    assert any(gap.startswith("batches of over 8 sequences") for gap in found)
    assert any(gap.startswith("context of over 7200 tokens") for gap in found)
    assert not any(gap.startswith("prompts") for gap in found)


def test_what_cannot_occur_is_no_gap() -> None:
    rows = [row for row in rows_of(CURVED) if row.batch < 16]
    assert "prefill_long" not in unmeasured(rows, LIMITS)
    assert "decode_large" not in unmeasured(rows, Limits(2048, 512, 8, 10_000, 16))


def test_without_a_handoff_the_link_is_a_gap() -> None:
    found = kind_profile(Role.MIXED, rows_of(CURVED), None, LIMITS, kv_token_bytes=64)
    assert any(gap.startswith("link") for gap in found.not_measured)
