"""What a user writes after `twinpool bench transfer`, made into what is measured; and what cannot be, told.

Knows the words of the command line; measures nothing.
"""

import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

from twinpool.cluster.bench import transfer_codecs
from twinpool.cluster.bench.report import print_report
from twinpool.cluster.bench.transfer import COLUMNS, CROSSOVER_COLUMNS, TransferOptions, bench_transfer, check_options
from twinpool.cluster.bench.transfer_case import (
    MEASURED_LINKS,
    NO_LIMIT,
    parse_codecs,
    parse_limits,
    parse_shapes,
    parse_size,
    split,
)
from twinpool.cluster.bench.transfer_plans import default_plans, full_plans
from twinpool.core.errors import SpecError
from twinpool.kv_transfer.codec import CodecName
from twinpool.model.kv_layout import KVLayout

UNMEASURED_LINKS = ("nccl", "cuda_ipc")  # known by name, and not measured by this version: _why_not says why
NO_SIZES = "-"
DEFAULT_SIZES = "1MiB,64MiB"
DEFAULT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Asked:
    """Lists as the user wrote them; None where nothing was said. With all of them None, transfer_plans.py chooses."""

    codecs: str | None = None
    sizes: str | None = None
    tokens: int | None = None
    limits: str | None = None
    shapes: str | None = None

    @property
    def is_nothing(self) -> bool:
        return all(value is None for value in astuple(self))


def run_transfer(
    layout: KVLayout,
    asked: Asked,
    *,
    links: str,
    produced: str | None,
    codec_errors: bool,
    full: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure and print.

    Args:
        settings: the rest of TransferOptions.

    Raises:
        SpecError: one of them makes no sense. Nothing was started.
    """
    if full and not asked.is_nothing:
        raise SpecError("--full: chooses codecs, sizes, limits and ranks itself")
    produced_bytes_per_s = None if produced is None else parse_size(produced, "--produced-bytes-per-s")
    base = TransferOptions(layout, (), _choose_links(links), produced_bytes_per_s=produced_bytes_per_s, **settings)
    plans = full_plans(base) if full else default_plans(base) if asked.is_nothing else [_product(base, asked)]
    for plan in plans:
        check_options(plan)
    errors: dict[str, Any] = {}
    more: tuple[str, ...] = ()
    if codec_errors or asked.is_nothing:
        errors = _codec_errors(dict.fromkeys(codec for plan in plans for codec in plan.codecs), must=codec_errors)
        more = transfer_codecs.COLUMNS if errors else ()
    rows = bench_transfer(plans, _tell)
    for row in rows:
        row["codec_error"] = errors.get(row["codec"])
    if any(row["ratio_to_raw_codec"] is not None for row in rows):
        more = (*CROSSOVER_COLUMNS, *more)
    print_report("bench transfer", rows, (*COLUMNS, *more), as_json=as_json)


def _product(base: TransferOptions, asked: Asked) -> TransferOptions:
    """Every codec with every size, limit and shape that was named; where nothing was, the usual."""
    tokens = DEFAULT_TOKENS if asked.tokens is None else asked.tokens
    return replace(
        base,
        sizes=_read_sizes(asked.sizes or DEFAULT_SIZES, tokens, base.layout),
        codecs=parse_codecs(asked.codecs or CodecName.RAW),
        limits=parse_limits(asked.limits or NO_LIMIT),
        shapes=parse_shapes(asked.shapes or "1:1"),
    )


def _codec_errors(codecs: Iterable[str], *, must: bool) -> dict[str, Any]:
    try:
        return transfer_codecs.codec_errors(tuple(codecs))
    except SpecError as error:
        if must:
            raise
        _tell(f"not measured: {str(error).removeprefix('--')}")
        return {}


def _read_sizes(sizes: str, tokens: int, layout: KVLayout) -> tuple[int, ...]:
    found = [] if sizes.strip() == NO_SIZES else [parse_size(part, "--bytes") for part in split(sizes)]
    if tokens:
        found.append(tokens * layout.token_bytes)
    if not found:
        raise SpecError("--bytes: no size is left to measure")
    return tuple(dict.fromkeys(found))


def _choose_links(text: str) -> tuple[str, ...]:
    """The links that can be measured, of those asked for; the user is told of the others."""
    asked = [*MEASURED_LINKS, *UNMEASURED_LINKS] if text.strip() == "all" else split(text)
    for name in asked:
        if name in UNMEASURED_LINKS:
            _tell(f"not measured: {name}: {_why_not(name)}")
        elif name not in MEASURED_LINKS:
            raise SpecError(
                f"--link: {name[:60]!r} is not one of {', '.join(MEASURED_LINKS + UNMEASURED_LINKS)} or all"
            )
    return tuple(name for name in asked if name in MEASURED_LINKS)


def _why_not(name: str) -> str:
    import torch

    gpus, needed = torch.cuda.device_count(), {"nccl": 2, "cuda_ipc": 1}[name]
    if gpus < needed:
        return f"it needs {needed} GPU{'s' * (needed > 1)}, and there {'is one' if gpus == 1 else 'is none'} here"
    return "this benchmark's pools lie in host memory, and it has no raw transfer between GPUs to set beside it"


def _tell(sentence: str) -> None:
    sys.stderr.write(f"twinpool: {sentence}\n")
