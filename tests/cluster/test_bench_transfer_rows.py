"""The arithmetic of `twinpool bench transfer`, exactly; and its limiter and modelled prefill, without a process."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from twinpool.cluster.bench.transfer import TransferOptions, check_options
from twinpool.cluster.bench.transfer_case import (
    Case,
    Grouping,
    choose_cases,
    describe_chunks,
    parse_codecs,
    parse_limits,
    parse_shapes,
    parse_size,
)
from twinpool.cluster.bench.transfer_links import PacedWire, TokenBucket
from twinpool.cluster.bench.transfer_prefill import Prefill
from twinpool.cluster.bench.transfer_rows import (
    Handover,
    Round,
    add_crossovers,
    find_crossover,
    limited_raw_s,
    row_of,
)
from twinpool.core.errors import SpecError
from twinpool.kv_transfer.chunk_wire import Cut, Wait
from twinpool.kv_transfer.header import Bytes
from twinpool.kv_transfer.link import LinkError
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.rank_shape import WorkerShape
from twinpool.model.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, block_tokens=16, head_dim=64, dtype="bfloat16", model="bench")


# --- Cases ------------------------------------------------------------------------------------------------------------


def test_groups_cover_a_request_once_whatever_the_grouping() -> None:
    for num_tokens, chunk_tokens, layers, streaming in itertools.product(
        (1, 16, 100, 640), (7, 64, 512), (1, 3, 4), (True, False)
    ):
        spans = Grouping(chunk_tokens, layers).spans(LAYOUT, num_tokens, streaming=streaming)
        cells = [
            (layer, block)
            for span in spans
            for layer in range(span.first_layer, span.end_layer)
            for block in range(span.first_block, span.end_block)
        ]
        assert sorted(cells) == list(itertools.product(range(4), range(LAYOUT.num_blocks(num_tokens))))
        assert streaming or len(spans) == 1


def test_descriptors_are_groups_chunks_and_runs() -> None:
    one = RankGroups.between(LAYOUT, WorkerShape(), WorkerShape())
    scattered = describe_chunks([Span(0, 4, 0, 4)], one, [9, 2, 6, 4], "raw", 64)
    assert scattered == {"groups": 1, "links": 1, "chunks": 1, "runs": 4, "link_bytes": 4 * LAYOUT.block_bytes}
    neighbours = describe_chunks([Span(0, 4, 0, 4)], one, [2, 3, 4, 5], "raw", 64)
    assert neighbours["runs"] == 1
    by_layer = describe_chunks(Grouping(64, 1).spans(LAYOUT, 64, streaming=True), one, [2, 3, 4, 5], "int8", 64)
    assert (by_layer["groups"], by_layer["chunks"], by_layer["runs"]) == (4, 4, 16)
    assert by_layer["link_bytes"] < 4 * LAYOUT.block_bytes


def test_descriptors_of_workers_of_several_ranks_count_every_link() -> None:
    cut = RankGroups.between(LAYOUT, WorkerShape(1), WorkerShape(2))
    described = describe_chunks([Span(0, 4, 0, 4)], cut, [2, 3, 4, 5], "raw", 64)
    assert described == {
        "groups": 1,
        "links": 2,
        "chunks": 2,
        "runs": 2 * 4 * 4 * 2,
        "link_bytes": 4 * LAYOUT.block_bytes,
    }
    copied = RankGroups.between(LAYOUT, WorkerShape(2), WorkerShape(4))  # of two heads
    described = describe_chunks([Span(0, 4, 0, 4)], copied, [2, 3, 4, 5], "raw", 64)
    assert (described["links"], described["link_bytes"]) == (4, 2 * 4 * LAYOUT.block_bytes)


def test_what_cannot_be_measured_is_named_and_left_out() -> None:
    sets, passed = choose_cases(("gloo", "shm"), ("raw", "int8"), (True, False), (None, 10**8))
    assert [{(case.link, case.codec, case.limit_bytes_per_s) for case in cases} for cases in sets] == [
        {("gloo", "raw", None), ("gloo", "int8", None)},
        {("gloo", "raw", 10**8), ("gloo", "int8", 10**8)},
        {("shm", "raw", None)},
    ]
    assert [sentence.partition(":")[0] for sentence in passed] == ["shm with int8", "shm at 100000000 bytes/s"]
    assert len({case.name for cases in sets for case in cases}) == 10


def test_workers_of_each_pair_of_shapes_are_measured_by_themselves() -> None:
    sets, passed = choose_cases(("gloo",), ("raw", "int8"), (True,), (None, 10**8), ((1, 1), (1, 2)))
    assert passed == []
    assert [{(case.limit_bytes_per_s, case.source_tp, case.target_tp) for case in cases} for cases in sets] == [
        {(None, 1, 1)},
        {(None, 1, 2)},
        {(10**8, 1, 1)},
        {(10**8, 1, 2)},
    ]


def test_sizes_limits_and_codecs_are_read_as_written() -> None:
    assert [parse_size(text, "-") for text in ("64MiB", "1.5 KB", "7")] == [64 << 20, 1500, 7]
    assert parse_limits("none, 100MB,none") == (None, 10**8)
    assert parse_codecs("all") == ("raw", "int8", "fp8", "int4", "int2")
    for text in ("", "0", "-1", "MiB", "1 parsec", "1e9", "nan", "٣"):
        with pytest.raises(SpecError, match="--bytes: must be a size"):
            parse_size(text, "--bytes")
    with pytest.raises(SpecError, match="under the 1000000 bytes/s"):
        parse_limits("1KB")
    with pytest.raises(SpecError, match="'zip' is not one of raw"):
        parse_codecs("raw,zip")
    assert parse_shapes("1:1, 2:4,1:1") == ((1, 1), (2, 4))
    for text in ("", "2", "1:0", "1:2:4", "99:1", "1:-1", "a:b"):
        with pytest.raises(SpecError, match="--tp: must be ranks of source and target such as 1:2"):
            parse_shapes(text)


def test_sizes_are_of_whole_blocks_and_have_to_fit_into_memory() -> None:
    options = TransferOptions(LAYOUT, (LAYOUT.block_bytes * 5 // 2,))
    assert options.num_tokens(options.sizes[0]) == 2 * LAYOUT.block_tokens
    check_options(options)
    with pytest.raises(SpecError, match="--bytes: 100 are under one block"):
        check_options(TransferOptions(LAYOUT, (100,)))
    with pytest.raises(SpecError, match=r"--bytes: pools .* are available here"):
        check_options(TransferOptions(LAYOUT, (1 << 50,)))


def test_the_name_of_a_case_says_all_of_it() -> None:
    assert Case("gloo", "int8", False, 10**8, 1, 2).name == "gloo/int8/plain/100000000/1:2"
    assert Case("shm").name == "shm/raw/digest/none/1:1"


# --- Rows -------------------------------------------------------------------------------------------------------------


def handover(begun_s: float, link_s: float, *, wait_s: float = 0.25, computed_s: float = 0.0) -> Handover:
    """Waits before and after the link; no gap on it."""
    first = begun_s + wait_s
    last = first + link_s
    return Handover(begun_s, begun_s + computed_s, first, last, last + wait_s, last + 2 * wait_s, link_s)


def round_of(link_s: float, *, raw_s: float = 1.0, exposed_s: float = 0.5) -> Round:
    produced = handover(100.0, 4.0 + exposed_s, wait_s=0.0, computed_s=5.0)
    return Round(raw_s, handover(7.0, link_s), 4.0, produced)


def test_a_row_has_medians_over_rounds_and_spreads_of_their_ratios() -> None:
    rounds = [round_of(2.0), round_of(4.0, exposed_s=1.0), round_of(1.0)]
    row = row_of(2 * 10**9, rounds, None)
    assert (row["gb_per_s"], row["raw_gb_per_s"], row["fraction_of_raw"]) == (1.0, 2.0, 0.5)
    assert row["fraction_spread"] == {"min": 0.25, "max": 1.0}
    assert (row["handover_ms_p50"], row["wire_ms_p50"], row["beyond_wire_ms_p50"]) == (2500.0, 2000.0, 500.0)
    assert row["beyond_raw_ms_p50"] == 1500.0
    assert row["released_ms_p50"] == 2750.0
    assert row["handover_fraction_of_raw"] == 1.0 / 2.5
    assert row["hidden_share"] == 0.75
    assert row["hidden_spread"] == {"min": 0.5, "max": 0.75}
    assert (row["prefill_slowdown"], row["exposed_ms_p50"], row["runs"]) == (1.25, 500.0, 3)
    assert row["digest_ratio"] is None


def test_a_slower_prefill_counts_as_exposed() -> None:
    slowed = Round(1.0, handover(0.0, 2.0), 4.0, handover(0.0, 6.0, wait_s=0.0, computed_s=6.0))
    assert (slowed.exposed_s, slowed.hidden_share) == (2.0, 0.0)


def test_the_digest_costs_what_rounds_with_it_take_longer_than_those_without() -> None:
    row = row_of(10, [round_of(2.5), round_of(3.5)], [round_of(1.5), round_of(3.5)])
    assert row["digest_ratio"] == (3.0 / 2.0 + 1.0) / 2
    assert row["digest_spread"] == {"min": 1.0, "max": 1.5}


def test_a_limiter_holds_the_raw_transfer_back_too() -> None:
    assert [limited_raw_s(0.5, 100, limit) for limit in (None, 100, 1000)] == [0.5, 1.0, 0.5]


def test_a_crossover_lies_between_the_bandwidths_that_were_measured() -> None:
    assert find_crossover([(1.0, 0.5), (4.0, 2.0)]) == pytest.approx(2.0)
    assert find_crossover([(4.0, 1.0), (1.0, 0.5)]) == pytest.approx(4.0)
    assert find_crossover([(1.0, 0.5), (4.0, 2.0), (16.0, 0.5), (64.0, 2.0)]) == pytest.approx(32.0)
    for points in ([], [(1.0, 0.5)], [(1.0, 0.5), (4.0, 0.9)], [(1.0, 1.5), (4.0, 2.0)]):
        assert find_crossover(points) is None


def test_codecs_are_compared_with_raw_under_the_same_limiter_only() -> None:
    def row(codec: str, limiter: int, handover_ms: float) -> dict[str, Any]:
        same = {"link": "gloo", "digest": True, "streaming": False, "bytes": 1, "source_tp": 1, "target_tp": 2}
        return same | {"codec": codec, "limiter": limiter, "raw_gb_per_s": limiter, "handover_ms_p50": handover_ms}

    rows = [row("raw", 1, 8.0), row("int8", 1, 4.0), row("raw", 4, 2.0), row("int8", 4, 4.0), row("int4", 9, 1.0)]
    add_crossovers(rows)
    assert [each["ratio_to_raw_codec"] for each in rows] == [None, 0.5, None, 2.0, None]
    assert [each["pays_below_gb_per_s"] for each in rows] == [None, pytest.approx(2.0), None, pytest.approx(2.0), None]


# --- Limiter and prefill ----------------------------------------------------------------------------------------------


def test_a_bucket_lets_bytes_pass_at_its_rate_and_a_burst_after_idling() -> None:
    bucket = TokenBucket(10.0)
    assert [bucket.take(20, now_s) for now_s in (0.0, 0.0, 1.0, 100.0)] == [2.0, 4.0, 6.0, 102.0]
    bursting = TokenBucket(10.0, burst_bytes=30)
    assert [bursting.take(20, 50.0) for _ in range(3)] == [50.0, 51.0, 53.0]


class NotingWire:
    """A wire that takes everything at once, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.cut: Cut | None = None
        self.sent: list[int] = []
        self.is_closed = False
        self._fails = fails

    def send(self, chunk: int, header: Bytes, parts: Iterable[Bytes]) -> Wait:
        if self._fails:
            raise LinkError("broken")
        self.sent.append(chunk)
        return lambda: None

    def receive(self, chunk: int, header: Bytes, parts: Sequence[Bytes], arrived: Callable[[Bytes], None]) -> Wait:
        return lambda: None

    def cancel(self) -> None:
        raise AssertionError("nobody asked for it")

    def close(self) -> None:
        self.is_closed = True


def send_all(wire: PacedWire, chunks: Sequence[int]) -> list[Wait]:
    data = np.zeros(8, dtype=np.uint8)
    return [wire.send(chunk, data, [data]) for chunk in chunks]


def test_a_paced_wire_sends_in_order_and_tells_of_failures(no_leaked_threads: None) -> None:
    inner = NotingWire()
    wire = PacedWire(inner, TokenBucket(1e9))
    for wait in send_all(wire, range(5)):
        wait()
    wire.close()
    assert (inner.sent, inner.is_closed) == ([0, 1, 2, 3, 4], True)
    broken = PacedWire(NotingWire(fails=True), TokenBucket(1e9))
    (wait,) = send_all(broken, [0])
    with pytest.raises(LinkError, match="broken"):
        wait()
    broken.close()


def test_closing_a_paced_wire_ends_what_still_waits_for_its_turn(no_leaked_threads: None) -> None:
    wire = PacedWire(NotingWire(), TokenBucket(1e-3))
    waits = send_all(wire, range(2))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(wire.close)
        for wait in waits:
            with pytest.raises(LinkError, match="was closed"):
                wait()
        closing.result()


@pytest.mark.parametrize("unit_s", [None, 1e-3])
def test_a_prefill_produces_every_group_in_order(unit_s: float | None) -> None:
    groups: list[int] = []
    Prefill([0.0, 1e-3, 2e-3], unit_s).run(groups.append)
    assert groups == [0, 1, 2]
