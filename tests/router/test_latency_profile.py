"""Profile values: what goes in comes out, and nothing else goes in."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tests.router.profiles import LINEAR, TABLE, kind, profile
from twinpool.core.messages import Role
from twinpool.router.estimate import LinearForm, LinkCost
from twinpool.router.hardware import GPUS
from twinpool.router.latency_fit import FitError, LinearFit, Region
from twinpool.router.latency_profile import ErrorPart, LatencyProfile, error_parts, kind_name, link_part, part_of
from twinpool.router.latency_table import Curve, TableForm
from twinpool.router.roofline import ModelSize, roofline_form

TABLE_FORM = TableForm(Curve((1.0, 2.0), (3.0, 4.0)), Curve((1.0, 8.0), (0.1, 0.2)), 100.0, 1e-6)


def test_a_kind_says_what_predictions_are_made_from() -> None:
    found = LatencyProfile.model_validate(profile()).kinds["prefill-tp1-pp1"].latency_model(chunk_tokens=256)
    assert found.steps == LinearForm(0.01, 0.001, 0.0, 0.02, 0.0, 0.003)
    assert (found.link, found.kv_token_bytes, found.chunk_tokens) == (LinkCost(0.002, 1e9), 64, 256)


@pytest.mark.parametrize("form", [LinearForm(), TABLE_FORM])
def test_a_form_comes_back_from_its_part(form: LinearForm | TableForm) -> None:
    part = part_of(form)
    assert type(part).model_validate_json(part.model_dump_json()).steps() == form


def test_a_computed_form_has_no_place_in_a_profile() -> None:
    form = roofline_form(ModelSize(2, 64, 4, 2, 16, 128, 100), GPUS["H200"])
    with pytest.raises(TypeError, match="RooflineForm"):
        part_of(form)


def test_a_link_too_fast_to_measure_comes_back_as_such() -> None:
    part = link_part(LinkCost(1e-3, math.inf))
    assert part.bytes_per_s is None
    assert part.cost() == LinkCost(1e-3, math.inf)


def test_a_fit_s_errors_go_by_region() -> None:
    fit = LinearFit(LinearForm(), {Region.MIXED: FitError(3, 0.1, 0.2)})
    assert error_parts(fit) == {"mixed": ErrorPart(count=3, median=0.1, p90=0.2)}


def test_a_kind_that_was_not_measured_is_taken_for_one_of_its_shape() -> None:
    found = LatencyProfile.model_validate(profile(decode_tp1_pp1=kind("decode"), mixed_tp2_pp1=kind("mixed")))
    assert found.of_kind("decode-tp1-pp1") is found.kinds["decode-tp1-pp1"]
    assert found.of_kind("prefill-tp1-pp1") is found.kinds["decode-tp1-pp1"]
    assert found.of_kind("prefill-tp4-pp1") is None


def test_kinds_are_named_by_role_and_shape() -> None:
    assert kind_name(Role.PREFILL, 2, 3) == kind_name("prefill", 2, 3) == "prefill-tp2-pp3"


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (profile() | {"version": 2}, "version"),
        (profile() | {"message_s": -1.0}, "message_s"),
        (profile() | {"kinds": {}}, "kinds"),
        (profile() | {"more": 1}, "more"),
        (profile(x=kind("cook")), "kinds.x.role"),
        (profile(x=kind(steps=LINEAR | {"prefill_a_s": math.nan})), "kinds.x.steps.linear.prefill_a_s"),
        (profile(x=kind(steps=LINEAR | {"prefill_a_s": "1"})), "kinds.x.steps.linear.prefill_a_s"),
        (profile(x=kind(steps={"form": "cubic"})), "kinds.x.steps"),
        (profile(x=kind(steps=TABLE | {"decode_s": {"x": [2.0, 1.0], "y": [1.0, 1.0]}})), "kinds.x.steps.table"),
        (profile(x=kind(steps=TABLE | {"decode_s": {"x": [1.0, 2.0], "y": [1.0]}})), "kinds.x.steps.table"),
        (profile(x=kind(link={"latency_s": 0.1, "bytes_per_s": 0.0})), "kinds.x.link.bytes_per_s"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_key(bad: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LatencyProfile.model_validate(bad)
    keys = [".".join(map(str, item["loc"])) for item in caught.value.errors()]
    assert any(key.startswith(where) for key in keys), keys
