"""What the router supposes before it has seen any work."""

from typing import Any

import pytest

from tests.router.profiles import kind, profile
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.router.estimate import LinearForm
from twinpool.router.first_estimate import check_profile, first_estimates, kinds_by_role
from twinpool.router.hardware import GPUS
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.roofline import ModelSize, roofline_form

SIZE = ModelSize(32, 4096, 32, 8, 128, 14_336, 128_256)
P, D = "prefill-tp1-pp1", "decode-tp1-pp1"


def spec(prefill: str | None = None, decode: str | None = None) -> ClusterSpec:
    pools: dict[str, Any] = {"prefill": {"workers": 1}, "decode": {"workers": 1}}
    pools["prefill"] |= {"hardware": prefill} if prefill else {}
    pools["decode"] |= {"hardware": decode} if decode else {}
    text = {"name": "x", "model": {"path": "dummy:tiny"}, "pools": pools, "batching": {"chunk_tokens": 256}}
    return ClusterSpec.model_validate(text)


def test_every_role_has_a_kind() -> None:
    assert kinds_by_role(spec()) == {Role.PREFILL: P, Role.DECODE: D, Role.MIXED: "mixed-tp1-pp1"}


def test_nothing_known_means_nothing_supposed() -> None:
    assert first_estimates(spec(), None, SIZE) == ({}, ())


def test_named_hardware_gives_its_roofline_and_its_network() -> None:
    found, problems = first_estimates(spec("H100-SXM", "H200"), None, SIZE)
    assert problems == ()
    assert found[P].steps == roofline_form(SIZE, GPUS["H100-SXM"])
    assert found[D].steps == roofline_form(SIZE, GPUS["H200"])
    assert found[P].link.bytes_per_s == 50e9
    assert (found[P].kv_token_bytes, found[P].chunk_tokens) == (SIZE.kv_token_bytes, 256)


def test_a_profile_goes_before_hardware() -> None:
    measured = LatencyProfile.model_validate(profile(prefill_tp1_pp1=kind()))
    found, _ = first_estimates(spec("H100-SXM", "H100-SXM"), measured, SIZE)
    assert isinstance(found[P].steps, LinearForm)
    assert found[D].steps == found[P].steps  # of the same shape


def test_a_model_without_size_has_no_roofline() -> None:
    assert first_estimates(spec("H100-SXM"), None, None) == ({}, ())


def test_a_sheet_that_lacks_the_arithmetic_is_refused_at_its_key() -> None:
    found, (problem,) = first_estimates(spec("A10G"), None, SIZE)
    assert found == {}
    assert problem.path == ("pools", "prefill", "hardware")
    assert "A10G" in problem.what


@pytest.mark.parametrize(("kv_token_bytes", "is_ours"), [(64, True), (128, False)])
def test_a_profile_of_another_model_is_known_by_its_kv(kv_token_bytes: int, is_ours: bool) -> None:
    measured = LatencyProfile.model_validate(profile())
    problems = check_profile(measured, kv_token_bytes)
    assert (problems == ()) is is_ours
    assert all(problem.path == ("router", "profile") for problem in problems)
