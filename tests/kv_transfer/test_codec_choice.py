"""KV is compressed when, and only when, it then arrives sooner and its request allows it."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_choice import CodecRates, CodecReason, choose_codec

GB = 1e9
RATIO = {CodecName.INT8: 1.94, CodecName.FP8: 1.94, CodecName.INT4: 3.56, CodecName.INT2: 5.82}
FAST = [CodecRates(name, ratio, 1000 * GB, 1000 * GB) for name, ratio in RATIO.items()]
RATE = st.floats(1e6, 1e12)
RATES = st.builds(CodecRates, st.sampled_from(list(RATIO)), st.floats(1.0, 8.0), RATE, RATE)


def choose(link: float, produced: float, codecs: list[CodecRates] = FAST) -> tuple[CodecName, CodecReason]:
    choice = choose_codec(link * GB, produced * GB, codecs, allows_loss=True)
    return choice.codec, choice.reason


@pytest.mark.parametrize(
    ("link", "produced", "codec", "reason"),
    [
        (10, 5, CodecName.RAW, CodecReason.LINK_KEEPS_UP),
        (5, 5, CodecName.RAW, CodecReason.LINK_KEEPS_UP),
        (2.6, 5, CodecName.INT8, CodecReason.HIDES_WIRE),
        (2.5, 5, CodecName.INT4, CodecReason.HIDES_WIRE),
        (1, 5, CodecName.INT2, CodecReason.HIDES_WIRE),
        (0.1, 5, CodecName.INT2, CodecReason.CHEAPEST),
        (10, inf, CodecName.INT2, CodecReason.CHEAPEST),
    ],
)
def test_fast_codecs_are_as_coarse_as_the_link_needs(
    link: float, produced: float, codec: CodecName, reason: CodecReason
) -> None:
    assert choose(link, produced) == (codec, reason)
    assert choose(link, produced, FAST[::-1]) == (codec, reason)


def test_a_request_that_allows_no_loss_gets_raw_however_slow_the_link() -> None:
    choice = choose_codec(1.0, GB, FAST, allows_loss=False)
    assert (choice.codec, choice.reason) == (CodecName.RAW, CodecReason.LOSS_NOT_ALLOWED)


def test_a_codec_slower_than_what_it_saves_is_not_used() -> None:
    slow = CodecRates(CodecName.INT8, 1.94, 4 * GB, 4 * GB)  # costs 0.5 ns a byte; at 3 GB/s only 0.13 ns are exposed
    assert choose(3, 5, [slow]) == (CodecName.RAW, CodecReason.CODING_TOO_SLOW)
    assert choose(0.5, 5, [slow]) == (CodecName.INT8, CodecReason.CHEAPEST)
    assert choose(1, 5, []) == (CodecName.RAW, CodecReason.CODING_TOO_SLOW)


def test_raw_among_the_codecs_changes_nothing() -> None:
    assert choose(1, 5, [CodecRates(CodecName.RAW, 1.0, inf, inf), *FAST]) == choose(1, 5)


def test_delay_is_what_the_wire_exposes_and_coding() -> None:
    choice = choose_codec(1 * GB, 4 * GB, [CodecRates(CodecName.INT8, 2.0, 10 * GB, 20 * GB)], allows_loss=True)
    assert choice.delay_s_per_byte == pytest.approx((0.5 - 0.25 + 0.1 + 0.05) / GB)


@given(RATE, RATE, st.lists(RATES, max_size=4, unique_by=lambda rates: rates.codec))
def test_the_choice_is_the_mildest_that_keeps_up_or_else_the_least_delay(
    link: float, produced: float, codecs: list[CodecRates]
) -> None:
    choice = choose_codec(link, produced, codecs, allows_loss=True)
    delay = {CodecName.RAW: max(0.0, 1 / link - 1 / produced)}
    for rates in codecs:
        exposed = max(0.0, 1 / (link * rates.compression_ratio) - 1 / produced)
        delay[rates.codec] = exposed + 1 / rates.encode_bytes_per_s + 1 / rates.decode_bytes_per_s
    assert choice.delay_s_per_byte == pytest.approx(delay[choice.codec])
    assert choice.delay_s_per_byte <= delay[CodecName.RAW]
    if choice.codec is CodecName.RAW or choice.reason is CodecReason.CHEAPEST:
        assert delay[choice.codec] <= min(delay.values()) * (1 + 1e-9)
    else:
        ratio = {rates.codec: rates.compression_ratio for rates in codecs}
        milder = list(CodecName)[1 : list(CodecName).index(choice.codec)]
        keeping_up = [name for name in milder if name in ratio and link * ratio[name] >= produced]
        assert link < produced <= link * ratio[choice.codec]
        assert all(delay[name] >= delay[CodecName.RAW] for name in keeping_up)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="link_bytes_per_s"):
        choose_codec(value, GB, FAST, allows_loss=True)
    with pytest.raises(ValueError, match="produced_bytes_per_s"):
        choose_codec(GB, value, FAST, allows_loss=True)
    with pytest.raises(ValueError, match="int8: encode_bytes_per_s"):
        CodecRates(CodecName.INT8, 2.0, value, GB)
