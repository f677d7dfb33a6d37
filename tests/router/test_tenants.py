"""Limits and counts of tenants, known and invented."""

import pytest

from twinpool.router import tenants
from twinpool.router.tenants import OTHERS, OverRate, TenantLimits, Tenants

LIMITS = {"default": TenantLimits(tokens_per_s=10, burst_tokens=100), "acme": TenantLimits(max_running=2, weight=3)}


def test_a_tenant_over_its_rate_is_told_when_to_come_back_and_others_are_not_concerned() -> None:
    known = Tenants(LIMITS)
    known.admitted("some", 1, 95, 0.0)
    assert known.over_rate("some", 25, 0.0) == OverRate("some", 10, 2.0)
    assert "some is over its tokens_per_s, 10" in OverRate("some", 10, 2.0).reason
    assert known.over_rate("some", 25, 2.0) is None
    assert known.over_rate("other", 25, 0.0) is None, "each unknown tenant has default's limits for itself"
    assert known.over_rate("acme", 10**9, 0.0) is None


def test_tokens_of_answers_are_paid_as_they_come() -> None:
    known = Tenants(LIMITS)
    known.admitted("some", 1, 50, 0.0)
    known.generated("some", 80, 0.0)
    over = known.over_rate("some", 10, 0.0)
    assert over is not None
    assert over.retry_after_s == pytest.approx(4)
    assert (known.counts()["some"].prompt_tokens, known.counts()["some"].output_tokens) == (50, 80)


def test_a_burst_is_what_comes_in_ten_seconds_unless_it_is_said() -> None:
    bucket = TenantLimits(tokens_per_s=7).bucket(0.0)
    assert bucket is not None
    assert bucket.burst_tokens == 70
    assert TenantLimits().bucket(0.0) is None


def test_so_many_run_and_no_more() -> None:
    known = Tenants(LIMITS)
    for may_start in (True, True, False):
        assert known.may_start("acme") == may_start
        known.started("acme", 0.0)
    known.stopped("acme", 0.0)
    known.stopped("acme", 0.0)
    assert known.may_start("acme")
    with pytest.raises(AssertionError, match="stopped more"):
        known.stopped("default", 0.0)


def test_answers_are_expected_to_be_as_long_as_they_were_and_before_as_they_may_be() -> None:
    known = Tenants()
    assert known.expected_output_tokens("a", 50, 0.0) == 50
    known.concluded("a", 20, 0.0)
    known.concluded("a", 40, 0.0)
    assert known.expected_output_tokens("a", 50, 0.0) == pytest.approx(21)
    assert known.expected_output_tokens("a", 5, 0.0) == 5


def test_invented_names_share_a_record_when_there_are_too_many_and_idle_ones_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenants, "MAX_TENANTS", 3)
    known = Tenants({"default": TenantLimits(tokens_per_s=10, burst_tokens=100)})
    for name in ("a", "b", "c", "d"):
        assert known.known_as(name, 0.0) == name
        known.admitted(name, 1, 50, 0.0)
    assert known.known_as("e", 0.1) == OTHERS
    assert known.known_as("a", 0.1) == "a"
    assert known.known_as("default", 0.1) == "default"
    known.started("a", 0.1)
    assert known.known_as("e", 6.0) == "e"
    assert list(known.counts()) == ["a"], "who runs something is not forgotten"
