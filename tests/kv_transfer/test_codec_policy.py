"""The setting, the request, the link and the rates decide on a codec; what cannot be is refused by its key."""

from typing import Any

import pytest

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_choice import CodecRates
from twinpool.kv_transfer.codec_policy import AUTO_CODECS, CodecPolicy, possible_codecs, usable_link
from twinpool.kv_transfer.codec_rates import measure_codec
from twinpool.model.kv_layout import KVLayout

LAYOUT = KVLayout(2, 2, 16, 64, "bfloat16", "m")
SMALL = KVLayout(4, 1, 8, 2, "float32", "m")  # a modelled runner's: no codec fits
SLOW_LINK: dict[str, Any] = {"link_kind": "gloo", "link_bytes_per_s": 1e6, "produced_bytes_per_s": 1.5e6}


def rates(codec: CodecName, layout: KVLayout) -> CodecRates:
    return CodecRates(codec, {CodecName.INT8: 1.9, CodecName.FP8: 1.9, CodecName.INT4: 3.5}[codec], 1e9, 1e9)


def choose(setting: str, **changes: Any) -> CodecName:
    return CodecPolicy(setting, LAYOUT, rates).choose(**({"allows_loss": True} | SLOW_LINK | changes))


def test_a_named_codec_holds_for_every_request_that_allows_loss():
    for name in CodecName:
        assert choose(name, link_bytes_per_s=None, produced_bytes_per_s=None) is name
        assert choose(name, allows_loss=False) is CodecName.RAW


def test_auto_is_raw_until_both_rates_are_known_and_where_the_target_copies():
    assert choose("auto") is CodecName.INT8
    for unknown in ("link_bytes_per_s", "produced_bytes_per_s"):
        assert choose("auto", **{unknown: None}) is CodecName.RAW
    assert choose("auto", link_kind="shm") is CodecName.RAW
    assert choose("auto", allows_loss=False) is CodecName.RAW


def test_auto_codes_as_mildly_as_the_link_lets_it_and_not_at_all_where_the_link_keeps_up():
    assert choose("auto", produced_bytes_per_s=0.9e6) is CodecName.RAW
    assert choose("auto", produced_bytes_per_s=3e6) is CodecName.INT4
    assert CodecName.INT2 not in AUTO_CODECS


def test_a_codec_that_does_not_fit_is_refused_when_named_and_left_out_by_auto():
    with pytest.raises(ValueError, match=r"^transfer\.codec: codec int4: head_dim 2 "):
        possible_codecs("int4", SMALL)
    assert possible_codecs("auto", SMALL) == possible_codecs("raw", SMALL) == (CodecName.RAW,)
    assert CodecPolicy("auto", SMALL).choose(allows_loss=True, **SLOW_LINK) is CodecName.RAW
    with pytest.raises(ValueError, match=r"^transfer\.codec: zip is not one of auto, raw"):
        possible_codecs("zip", LAYOUT)


def test_a_named_codec_does_without_shared_memory():
    assert usable_link("int8", "auto") == "gloo"
    assert usable_link("raw", "auto") == usable_link("auto", "auto") == "auto"
    assert usable_link("auto", "shm") == usable_link("raw", "shm") == "shm"
    with pytest.raises(ValueError, match=r"transfer\.codec: fp8 .*shm"):
        usable_link("fp8", "shm")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_a_codec_costs_is_measured_in_raw_bytes(dtype: str):
    ticks = iter([0.0, 1.0, 3.0, 10.0, 12.0, 16.0])
    layout = KVLayout(2, 2, 16, 32, dtype, "m")
    measured = measure_codec(CodecName.INT8, layout, lambda: next(ticks))
    assert measured.encode_bytes_per_s == 2 * measured.decode_bytes_per_s == pytest.approx(2**20, rel=0.01)
    assert measured.compression_ratio > 1.5
