"""The router's settings from the YAML's words."""

import pytest

from twinpool.router.estimate import LatencyModel
from twinpool.router.route import Disaggregate, OnPrefillLoss, Policy
from twinpool.router.settings import admission_settings, placement_settings


def test_words_become_settings():
    known = {"decode-tp1-pp1": LatencyModel(kv_token_bytes=7)}
    settings = placement_settings(
        policy="least_loaded",
        disaggregate="never",
        on_prefill_loss="fail",
        latencies=known,
        kv_token_bytes=64,
        chunk_tokens=128,
    )
    assert (settings.policy, settings.disaggregate) == (Policy.LEAST_LOADED, Disaggregate.NEVER)
    assert settings.on_prefill_loss is OnPrefillLoss.FAIL
    assert (settings.latency.kv_token_bytes, settings.latency.chunk_tokens, settings.latencies) == (64, 128, known)
    assert admission_settings(5).max_queued == 5


def test_a_word_that_is_none_is_refused():
    words = {
        "disaggregate": "never",
        "on_prefill_loss": "fail",
        "latencies": {},
        "kv_token_bytes": 1,
        "chunk_tokens": 1,
    }
    with pytest.raises(ValueError, match="best"):
        placement_settings(policy="best", **words)
