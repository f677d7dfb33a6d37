"""What a codec loses is part of a block's name, and a span knows its own shape."""

import pytest

from twinpool.kv_transfer.codec import CodecName, CodedSpan, coarsest, is_lossless, qualities_down_to, quality
from twinpool.kv_transfer.plan import Span
from twinpool.model.block_hash import block_hashes, root_hash

from .fakes import LAYOUT  # blocks of 4 tokens, 3 layers


def root(name: CodecName) -> bytes:
    return root_hash(tenant_salt="t", model="m", dtype="float32", codec=quality(name))


def test_only_raw_is_lossless_and_keeps_the_name_that_blocks_of_one_worker_have() -> None:
    assert [name for name in CodecName if is_lossless(name)] == [CodecName.RAW]
    assert quality(CodecName.RAW) == LAYOUT.codec


def test_blocks_that_came_through_different_codecs_share_no_name() -> None:
    named = {name: set(block_hashes(range(16), 4, root(name))) for name in CodecName}
    assert len(set().union(*named.values())) == sum(len(hashes) for hashes in named.values()) == 4 * len(CodecName)


def test_a_request_may_have_what_its_codec_allows_and_anything_better_best_first() -> None:
    assert qualities_down_to(CodecName.RAW) == ("raw",)
    assert qualities_down_to(CodecName.FP8) == ("raw", quality(CodecName.INT8), quality(CodecName.FP8))
    assert [len(qualities_down_to(name)) for name in CodecName] == [1, 2, 3, 4, 5]


def test_a_sequence_counts_as_the_coarsest_codec_of_its_blocks() -> None:
    assert coarsest([]) is CodecName.RAW
    assert coarsest([CodecName.RAW, CodecName.INT4, CodecName.INT8]) is CodecName.INT4


@pytest.mark.parametrize(
    ("num_tokens", "is_last_partial", "num_records"), [(12, False, 4), (13, False, 4), (11, True, 2), (9, True, 2)]
)
def test_only_a_last_block_with_unwritten_slots_stays_raw(
    num_tokens: int, is_last_partial: bool, num_records: int
) -> None:
    span = CodedSpan.of(Span(1, 3, 1, 3), LAYOUT, num_tokens)
    assert (span.num_blocks, span.num_layers, span.is_last_partial) == (2, 2, is_last_partial)
    assert span.num_records == num_records
    assert span.raw_bytes == Span(1, 3, 1, 3).num_bytes(LAYOUT)


@pytest.mark.parametrize(
    ("span", "match"),
    [(Span(0, 1, 1, 3), "block 2"), (Span(0, 1, 1, 1), "nothing"), (Span(1, 1, 0, 1), "nothing")],
)
def test_a_span_without_content_is_refused(span: Span, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CodedSpan.of(span, LAYOUT, 8)
