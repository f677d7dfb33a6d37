"""`twinpool bench transfer`: handoffs between two worker processes, beside what the link between them does at best.

Knows which measurement follows which; the processes take the times, and transfer_rows.py makes rows of them.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from twinpool.cluster.bench.transfer_case import (
    MEASURED_LINKS,
    Case,
    Grouping,
    Shapes,
    choose_cases,
    choose_grouping,
    describe_chunks,
)
from twinpool.cluster.bench.transfer_process import Process, running
from twinpool.cluster.bench.transfer_raw import SOURCE, TARGET
from twinpool.cluster.bench.transfer_rows import Handover, Round, add_crossovers, limited_raw_s, row_of
from twinpool.core.errors import Internal, SpecError
from twinpool.kv_transfer.codec import CodecName, is_lossless
from twinpool.kv_transfer.codec_policy import possible_codecs
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.rank_shape import WorkerShape
from twinpool.model.kv_layout import KVLayout
from twinpool.model.layer_groups import StreamRates

Values = dict[str, Any]
COLUMNS = (
    *("link", "codec", "digest", "streaming", ("source_tp", "from tp"), ("target_tp", "to tp"), "limiter", "bytes"),
    *("gb_per_s", "raw_gb_per_s", "fraction_of_raw", ("fraction_spread.min", "min"), ("fraction_spread.max", "max")),
    *("handover_ms_p50", "beyond_wire_ms_p50", "hidden_share", ("descriptors.chunks", "chunks"), "digest_ratio"),
)
CROSSOVER_COLUMNS = ("ratio_to_raw_codec", "pays_below_gb_per_s")
PRODUCED_SHARE = 0.5  # of the raw bandwidth: what a modelled prefill produces when no rate is given
WARM_RAW_RUNS = 3
SLACK_S = 60.0  # of a handoff's deadline, beside what the limiter makes it take
Raw = Callable[[int], float]  # seconds that so many bytes take


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """What to measure."""

    layout: KVLayout
    sizes: tuple[int, ...]  # bytes of KV of a request; those of whole blocks are taken
    links: tuple[str, ...] = MEASURED_LINKS
    codecs: tuple[str, ...] = ("raw",)
    digests: tuple[bool, ...] = (True, False)
    streaming: tuple[bool, ...] = (True, False)
    limits: tuple[int | None, ...] = (None,)
    shapes: tuple[Shapes, ...] = ((1, 1),)
    chunk_tokens: int = 512
    layers_per_group: int | None = None  # None: as the engine chooses, by the rates of link and prefill
    produced_bytes_per_s: float | None = None
    computes: bool = False  # whether a prefill keeps a core busy; else it waits, as for a device
    runs: int = 5

    @property
    def memory_bytes(self) -> int:
        """What the pools of both workers take; the KV in several ranks lies beside that in one."""
        held = [2 * max(self.sizes)]
        for pair in self.shapes:
            copies = sum(tp // min(tp, self.layout.num_kv_heads) for tp in pair if tp > 1)
            held.append(held[0] + copies * max(self.sizes))
        return max(held)

    def groups(self, shapes: Shapes) -> RankGroups:
        """What moves between workers of so many tensor-parallel ranks. Raises ValueError where they do not go."""
        return RankGroups.between(self.layout, WorkerShape(shapes[0]), WorkerShape(shapes[1]))

    def num_tokens(self, size: int) -> int:
        """Of the request whose KV has that size, or just less: whole blocks."""
        return size // self.layout.block_bytes * self.layout.block_tokens


def check_options(options: TransferOptions) -> None:
    """Raise SpecError for what cannot be measured, before anything starts."""
    layout = options.layout
    for size in options.sizes:
        if size < layout.block_bytes:
            raise SpecError(f"--bytes: {size} are under one block of this shape, {layout.block_bytes} bytes")
    for shapes in options.shapes:
        try:
            wires = options.groups(shapes).wire_layouts
        except ValueError as error:
            raise SpecError(f"--tp: {error}") from None
        for codec, wire in product(options.codecs, (layout, *wires)):
            try:
                possible_codecs(codec, wire)
            except ValueError as error:
                raise SpecError(f"--codec: {str(error).removeprefix('transfer.codec: ')}") from None
    needed, available = options.memory_bytes, _available_bytes()
    if needed > available:
        raise SpecError(f"--bytes: pools for the largest take {needed} bytes; {available} are available here")


def bench_transfer(plans: Sequence[TransferOptions], tell: Callable[[str], object]) -> list[Values]:
    """Measure everything that can be measured here; ``tell`` hears of what cannot, and why.

    Args:
        plans: all of one layout; each is measured as the product of what it names.

    Raises:
        SpecError: nothing of what is asked for can be measured anywhere, or not with so much memory.
        Internal: a process failed, or KV arrived changed.
    """
    for options in plans:
        check_options(options)
    found = [choose_cases(p.links, p.codecs, p.digests, p.limits, p.shapes) for p in plans]
    for sentence in dict.fromkeys(sentence for _, passed in found for sentence in passed):
        tell(f"not measured: {sentence}")
    if not any(sets for sets, _ in found):
        raise Internal("nothing that was asked for can be measured here")
    layout = plans[0].layout
    num_blocks = max(plan.num_tokens(size) for plan in plans for size in plan.sizes) // layout.block_tokens
    setup = {"layout": asdict(layout), "num_blocks": num_blocks}
    rows: list[Values] = []
    with running(("source", "target"), setup) as (source, target):
        has_no_shm = None in (source.told["fd"], target.told["fd"])
        if has_no_shm and any(cases[0].link == "shm" for sets, _ in found for cases in sets):
            tell("not measured: shm: this machine has no memory that processes can share by descriptor")
        for options, (sets, _) in zip(plans, found, strict=True):
            bench = _Bench(options, source, target)
            for cases in sets:
                if not (has_no_shm and cases[0].link == "shm"):
                    rows += bench.measure(cases)
    add_crossovers(rows)
    return rows


class _Bench:
    """Two processes, and what they are asked in turn."""

    def __init__(self, options: TransferOptions, source: Process, target: Process) -> None:
        self._options = options
        self._source = source
        self._target = target
        self._addresses: dict[str, tuple[Values, Values]] = {}  # of the source and the target, by case
        self._grouping = Grouping(options.chunk_tokens, options.layout.num_layers)  # at the size that is measured

    def measure(self, cases: Sequence[Case]) -> list[Values]:
        """Rows of cases that share a link and a limiter, measured turn by turn."""
        for case in cases:
            opened = [each.ask("open", case=asdict(case))["address"] for each in (self._source, self._target)]
            self._addresses[case.name] = (opened[0], opened[1])
        raw = self._open_raw(cases[0].link)
        rows = [row for size in self._options.sizes for row in self._measure_size(cases, size, raw)]
        for each in (self._source, self._target):
            each.ask("raw_close")
            for case in cases:
                each.ask("close", name=case.name)
        return rows

    def _measure_size(self, cases: Sequence[Case], size: int, raw: Raw) -> list[Values]:
        options, limit = self._options, cases[0].limit_bytes_per_s
        num_tokens = options.num_tokens(size)
        kv_bytes = num_tokens * options.layout.token_bytes
        raw(kv_bytes)
        link_s = median(raw(kv_bytes) for _ in range(WARM_RAW_RUNS))
        produced = options.produced_bytes_per_s or PRODUCED_SHARE * kv_bytes / link_s
        rates = StreamRates(kv_bytes / limited_raw_s(link_s, kv_bytes, limit), produced)
        self._grouping = choose_grouping(options.layout, options.chunk_tokens, options.layers_per_group, rates)
        prefill = {"bytes_per_s": produced, "computes": options.computes}
        variants = [(case, streaming) for case in cases for streaming in options.streaming]
        self._check_arrival(cases, num_tokens)
        rounds: dict[tuple[Case, bool], list[Round]] = {variant: [] for variant in variants}
        for number in range(1 + options.runs):
            raw_s = limited_raw_s(raw(kv_bytes), kv_bytes, limit)
            for variant in variants if number % 2 else reversed(variants):
                rounds[variant].append(self._round(*variant, num_tokens, raw_s, prefill))
        counted = {variant: taken[1:] for variant, taken in rounds.items()}  # the first round warms up
        return [self._row(case, streaming, num_tokens, produced, counted) for case, streaming in variants]

    def _row(
        self,
        case: Case,
        streaming: bool,
        num_tokens: int,
        produced_bytes_per_s: float,
        rounds: dict[tuple[Case, bool], list[Round]],
    ) -> Values:
        layout = self._options.layout
        plain = rounds.get((replace(case, digest=False), streaming))
        kv_bytes = num_tokens * layout.token_bytes
        spans = self._grouping.spans(layout, num_tokens, streaming=streaming)
        block_ids = self._source.told["block_ids"]
        return {
            "link": case.link,
            "codec": case.codec,
            "digest": case.digest,
            "streaming": streaming,
            "source_tp": case.source_tp,
            "target_tp": case.target_tp,
            "limiter": case.limit_bytes_per_s,
            "bytes": kv_bytes,
            "tokens": num_tokens,
            **row_of(kv_bytes, rounds[case, streaming], plain if case.digest else None),
            "produced_gb_per_s": produced_bytes_per_s / 1e9,
            "prefill": "computes" if self._options.computes else "waits",
            "descriptors": describe_chunks(
                spans,
                self._options.groups((case.source_tp, case.target_tp)),
                block_ids,
                case.codec,
                num_tokens,
            ),
        }

    def _round(self, case: Case, streaming: bool, num_tokens: int, raw_s: float, prefill: Values) -> Round:
        ready = self._hand_over(case, streaming, num_tokens, None)
        asked: Values = {"num_tokens": num_tokens, "grouping": asdict(self._grouping), "prefill": prefill}
        prefill_s = self._source.ask("prefill", self._deadline_s(num_tokens, prefill), **asked)["seconds"]
        return Round(raw_s, ready, prefill_s, self._hand_over(case, streaming, num_tokens, prefill))

    def _hand_over(self, case: Case, streaming: bool, num_tokens: int, prefill: Values | None) -> Handover:
        request_id = secrets.token_hex(8)
        source, target = self._addresses[case.name]
        asked: Values = {"name": case.name, "request_id": request_id}
        self._target.ask("expect", **asked, num_tokens=num_tokens, source=source)
        deadline_s = self._deadline_s(num_tokens, prefill, case.limit_bytes_per_s)
        self._target.begin("adopted", deadline_s, **asked)
        sent = self._source.ask(
            "hand_over",
            deadline_s,
            **asked,
            num_tokens=num_tokens,
            target=target,
            grouping=asdict(self._grouping),
            streaming=streaming,
            prefill=prefill,
        )
        adopted = self._target.finish(deadline_s)
        return Handover(
            begun_s=sent["begun_s"],
            computed_s=sent["computed_s"],
            first_s=sent["times"][0][0],
            last_s=max(ended_s for _, ended_s in sent["times"]),
            adopted_s=adopted["at_s"],
            released_s=sent["released_s"],
            wire_s=adopted["wire_s"],
        )

    def _deadline_s(self, num_tokens: int, prefill: Values | None, limit_bytes_per_s: int | None = None) -> float:
        kv_bytes = num_tokens * self._options.layout.token_bytes
        slow_s = 0.0 if limit_bytes_per_s is None else 2 * kv_bytes / limit_bytes_per_s
        return SLACK_S + slow_s + (0.0 if prefill is None else 4 * kv_bytes / prefill["bytes_per_s"])

    def _check_arrival(self, cases: Sequence[Case], num_tokens: int) -> None:
        """Every lossless case first proves that it moves the very bytes; the target has none of them before."""
        asked = {"num_tokens": num_tokens, "tensor_parallel": 1}
        sent = self._source.ask("digest", **asked)["digest"]
        for case in cases:
            if not is_lossless(CodecName(case.codec)):
                continue
            self._target.ask("clear")
            self._hand_over(case, False, num_tokens, None)
            if self._target.ask("digest", **asked | {"tensor_parallel": case.target_tp})["digest"] != sent:
                raise Internal(f"{case.name}: what arrived is not what was sent")

    # --- Raw --------------------------------------------------------------------------------------------------------

    def _open_raw(self, link: str) -> Raw:
        if link == "shm":
            self._target.ask("raw_map", pid=self._source.told["pid"], fd=self._source.told["fd"])
            return self._copy_raw
        port = self._target.ask("raw_listen")["port"]
        self._source.ask("raw_dial", port=port)
        self._target.begin("raw_meet", rank=TARGET)
        self._source.ask("raw_meet", rank=SOURCE)
        self._target.finish()
        return self._send_raw

    def _copy_raw(self, num_bytes: int) -> float:
        seconds: float = self._target.ask("raw_copy", num_bytes=num_bytes)["seconds"]
        return seconds

    def _send_raw(self, num_bytes: int) -> float:
        self._target.ask("raw_post", num_bytes=num_bytes)
        self._target.begin("raw_receive")
        began_s: float = self._source.ask("raw_send", num_bytes=num_bytes)["at_s"]
        arrived_s: float = self._target.finish()["at_s"]
        return arrived_s - began_s


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0
