"""What a user writes after `twinpool bench transfer`, made into what is measured; and what cannot be, told.

Knows the words of the command line; measures nothing.
"""

import sys
from typing import Any

from twinpool.cluster.bench.report import print_report
from twinpool.cluster.bench.transfer import COLUMNS, CROSSOVER_COLUMNS, TransferOptions, bench_transfer
from twinpool.cluster.bench.transfer_case import MEASURED_LINKS, parse_codecs, parse_limits, parse_size, split
from twinpool.core.errors import SpecError
from twinpool.model.kv_layout import KVLayout

UNMEASURED_LINKS = ("nccl", "cuda_ipc")  # known by name, and not measured by this version: _why_not says why
NO_SIZES = "-"


def run_transfer(
    layout: KVLayout,
    *,
    links: str,
    codecs: str,
    sizes: str,
    tokens: int,
    limits: str,
    produced: str | None,
    codec_errors: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure and print.

    Args:
        links, codecs, sizes, limits: comma-separated, as the user wrote them.
        settings: the rest of TransferOptions.

    Raises:
        SpecError: one of them makes no sense. Nothing was started.
    """
    usable = _choose_links(links)
    options = TransferOptions(
        layout,
        _read_sizes(sizes, tokens, layout),
        usable,
        parse_codecs(codecs),
        limits=parse_limits(limits),
        produced_bytes_per_s=None if produced is None else parse_size(produced, "--produced-bytes-per-s"),
        **settings,
    )
    _tell("not measured: source_tp or target_tp over 1: workers of several ranks are not supported by this version")
    errors: dict[str, Any] = {}
    more: tuple[str, ...] = ()
    if codec_errors:
        from twinpool.cluster.bench import transfer_codecs

        errors, more = transfer_codecs.codec_errors(options.codecs), transfer_codecs.COLUMNS
    rows = bench_transfer(options, _tell)
    for row in rows:
        row["codec_error"] = errors.get(row["codec"])
    if any(row["ratio_to_raw_codec"] is not None for row in rows):
        more = (*CROSSOVER_COLUMNS, *more)
    print_report("bench transfer", rows, (*COLUMNS, *more), as_json=as_json)


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
    if name == "cuda_ipc":
        return "this version has no such link"
    import torch

    gpus = torch.cuda.device_count()
    if gpus < 2:
        return f"it needs two GPUs, and there {'is one' if gpus == 1 else 'is none'} here"
    return "this version of the benchmark has no raw transfer between GPUs to set beside it"


def _tell(sentence: str) -> None:
    sys.stderr.write(f"twinpool: {sentence}\n")
