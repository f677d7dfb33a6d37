"""What a codec does to the demo model's answers: complete, consistent, and nothing at all for raw."""

from pathlib import Path

import pytest

from twinpool.cluster.bench.codec_error import CodecError, measure_codec_errors
from twinpool.core.errors import SpecError
from twinpool.kv_transfer.codec import CodecName

TINY = str(Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny")
PROMPTS = ([*range(5, 40)], [*range(100, 132)], [7])  # with a partial block, without, and nothing but that


@pytest.fixture(scope="module")
def errors() -> dict[CodecName, CodecError]:
    found = measure_codec_errors(TINY, PROMPTS, list(CodecName), new_tokens=6)
    assert [error.codec for error in found] == list(CodecName)
    return {error.codec: error for error in found}


def test_raw_changes_nothing(errors: dict[CodecName, CodecError]) -> None:
    raw = errors[CodecName.RAW]
    assert (raw.changed_tokens, raw.mean_logprob_error, raw.max_logprob_error) == (0, 0.0, 0.0)
    assert raw.coded_bytes == raw.raw_bytes == (3 + 2 + 1) * 16 * 4 * 2 * 2 * 32 * 2


def test_every_other_codec_changes_probabilities_and_takes_fewer_bytes(errors: dict[CodecName, CodecError]) -> None:
    for codec in set(CodecName) - {CodecName.RAW}:
        error = errors[codec]
        assert error.coded_bytes < error.raw_bytes == errors[CodecName.RAW].raw_bytes
        assert 0 < error.mean_logprob_error <= error.max_logprob_error
        assert 0 <= error.changed_tokens <= error.tokens == len(PROMPTS) * 5


def test_two_bits_lose_more_than_eight(errors: dict[CodecName, CodecError]) -> None:
    assert errors[CodecName.INT2].mean_logprob_error > errors[CodecName.INT8].mean_logprob_error


def test_what_cannot_be_measured_is_refused() -> None:
    for prompts, new_tokens in (([], 6), ([[5], []], 6), ([[5]], 1)):
        with pytest.raises(ValueError, match="at least"):
            measure_codec_errors(TINY, prompts, [CodecName.INT8], new_tokens=new_tokens)
    with pytest.raises(ValueError, match="head_dim 2"):
        measure_codec_errors("modelled:instant", PROMPTS, [CodecName.INT8])
    with pytest.raises(SpecError):
        measure_codec_errors("nowhere", PROMPTS, [CodecName.INT8])
