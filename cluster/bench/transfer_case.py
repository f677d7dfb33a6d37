"""What `twinpool bench transfer` measures: shapes of KV, cases, and the groups and chunks in which a request moves.

Pure arithmetic. Knows no process, no link and no clock.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from twinpool.core.errors import SpecError
from twinpool.core.spec_fields import UNITS
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_policy import COPIED_KINDS
from twinpool.kv_transfer.coding import Coding
from twinpool.kv_transfer.link import CHUNK_BYTES
from twinpool.kv_transfer.plan import Span, layer_groups, spans_of_chunk
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.runs import contiguous_runs
from twinpool.model.kv_layout import KVLayout
from twinpool.model.layer_groups import StreamRates, choose_layer_groups, group_ranges

MEASURED_LINKS = ("gloo", "shm")  # what `all` stands for, as far as it works here
LIMITED_LINKS = frozenset({"gloo"})  # links with a wire that a limiter can stand on
NO_LIMIT = "none"
Shapes = tuple[int, int]  # tensor-parallel ranks of source and target
MAX_TP = 64
MIN_LIMIT = 1_000_000  # bytes/s: below, single chunks would outlast the deadlines of the handoff


@dataclass(frozen=True, slots=True)
class Case:
    """One way to move KV between the two workers; has one endpoint in each."""

    link: str
    codec: str = "raw"
    digest: bool = True
    limit_bytes_per_s: int | None = None
    source_tp: int = 1  # tensor-parallel ranks
    target_tp: int = 1

    @property
    def name(self) -> str:
        digest, limit = "digest" if self.digest else "plain", self.limit_bytes_per_s or NO_LIMIT
        return f"{self.link}/{self.codec}/{digest}/{limit}/{self.source_tp}:{self.target_tp}"

    @property
    def is_of_single_ranks(self) -> bool:
        return (self.source_tp, self.target_tp) == (1, 1)


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a prefill hands its KV over: after how many tokens, and how many layers."""

    chunk_tokens: int
    layers_per_group: int
    layer_ends: tuple[int, ...] = ()  # of the groups, where they are not all of one size

    def spans(self, layout: KVLayout, num_tokens: int, *, streaming: bool) -> list[Span]:
        """The groups of a request in the order in which they are computed; a single one without streaming."""
        if not streaming:
            return [Span(0, layout.num_layers, 0, layout.num_blocks(num_tokens))]
        layers = layer_groups(layout.num_layers, self.layers_per_group)
        if self.layer_ends:
            layers = group_ranges(self.layer_ends)
        spans: list[Span] = []
        for before in range(0, num_tokens, self.chunk_tokens):
            after = min(before + self.chunk_tokens, num_tokens)
            spans += spans_of_chunk(before, after, after == num_tokens, layout.block_tokens, layers)
        return spans


def choose_grouping(layout: KVLayout, chunk_tokens: int, layers_per_group: int | None, rates: StreamRates) -> Grouping:
    """Groups of so many layers; None: of as many as the engine would choose, where link and prefill are that fast."""
    if layers_per_group is not None:
        return Grouping(chunk_tokens, layers_per_group)
    layer_bytes = layout.num_blocks(chunk_tokens) * layout.block_layer_bytes
    return Grouping(chunk_tokens, layout.num_layers, choose_layer_groups(layout.num_layers, layer_bytes, rates))


def parse_size(text: str, option: str) -> int:
    """``"64MiB"`` as 67108864.

    Raises:
        SpecError: it is no size over 0.
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    size = int(float(match[1]) * UNITS[match[2]]) if match is not None and match[2] in UNITS else 0
    if size < 1:
        raise SpecError(f"{option}: must be a size such as 64MiB, not {text[:60]!r}")
    return size


def parse_limits(text: str) -> tuple[int | None, ...]:
    """``"none,100MB"`` as (None, 100000000): what the limiter lets through each second.

    Raises:
        SpecError: one is no size, or too slow for any handoff.
    """
    option, limits = "--limit-bytes-per-s", []
    for part in split(text):
        limit = None if part == NO_LIMIT else parse_size(part, option)
        if limit is not None and limit < MIN_LIMIT:
            raise SpecError(f"{option}: {part} is under the {MIN_LIMIT} bytes/s that a handoff needs")
        limits.append(limit)
    return tuple(limits)


def parse_shapes(text: str) -> tuple[Shapes, ...]:
    """``"1:1,2:4"`` as ((1, 1), (2, 4)): tensor-parallel ranks of source and target.

    Raises:
        SpecError: one is no such pair.
    """
    shapes = []
    for part in split(text):
        match = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", part, re.ASCII)
        pair = (int(match[1]), int(match[2])) if match else (0, 0)
        if not all(0 < number <= MAX_TP for number in pair):
            raise SpecError(f"--tp: must be ranks of source and target such as 1:2, not {part[:60]!r}")
        shapes.append(pair)
    return tuple(shapes)


def split(text: str) -> list[str]:
    """The parts of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def parse_codecs(text: str) -> tuple[str, ...]:
    """``"raw,int8"`` as it is; ``all`` for every codec.

    Raises:
        SpecError: one is none.
    """
    codecs = split(text)
    if codecs == ["all"]:
        return tuple(str(name) for name in CodecName)
    for codec in codecs:
        if codec not in list(CodecName):
            raise SpecError(f"--codec: {codec[:60]!r} is not one of {', '.join(CodecName)} or all")
    return tuple(codecs)


def choose_cases(
    links: Iterable[str],
    codecs: Sequence[str],
    digests: Sequence[bool],
    limits: Sequence[int | None],
    shapes: Sequence[Shapes] = ((1, 1),),
) -> tuple[list[list[Case]], list[str]]:
    """The cases in sets that are measured turn by turn, one for each link, limiter and pair of shapes.

    And what cannot be measured, and why.
    """
    sets: list[list[Case]] = []
    passed: list[str] = []
    for link in links:
        coded = [codec for codec in codecs if codec == CodecName.RAW or link not in COPIED_KINDS]
        if dropped := [codec for codec in codecs if codec not in coded]:
            passed.append(f"{link} with {', '.join(dropped)}: the target copies KV out of the source's memory as it is")
        for limit in limits:
            if limit is not None and link not in LIMITED_LINKS:
                passed.append(f"{link} at {limit} bytes/s: a memory copy has no wire to limit")
            elif coded:
                sets += [
                    [Case(link, codec, digest, limit, *pair) for codec in coded for digest in digests]
                    for pair in shapes
                ]
    return sets, passed


def describe_chunks(
    spans: Sequence[Span], groups: RankGroups, block_ids: Sequence[int], codec: str, num_tokens: int
) -> dict[str, Any]:
    """How many descriptors a request takes, and its bytes on the link.

    ``groups`` are announcements on the control channel, ``links`` those between two ranks that take part, ``chunks``
    what these move one by one, ``runs`` the pieces that are contiguous in the pools of the source's ranks.
    """
    coding, model = Coding.of(CodecName(codec), num_tokens), groups.model
    chunks = runs = link_bytes = 0
    for span, route in product(spans, groups.routes):
        layout = groups.source_layouts[route.source.rank]
        for chunk in route.chunks(span, 0, model, CHUNK_BYTES):
            ids = block_ids[chunk.of_model.span.first_block : chunk.of_model.span.end_block]
            chunks += 1
            runs += len(contiguous_runs(chunk.at_source, layout, ids))
            link_bytes += coding.num_bytes(chunk.of_model.span, route.wire_layout(model))
    return {
        "groups": len(spans),
        "links": len(groups.links),
        "chunks": chunks,
        "runs": runs,
        "link_bytes": link_bytes,
    }
