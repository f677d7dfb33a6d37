"""The command `twinpool bench kernels`. Knows its options; what it measures is imported when it is run."""

import os
from pathlib import Path
from typing import Annotated

import typer

from twinpool.cluster.cli_options import JsonOption


def kernels(
    compile_only: Annotated[bool, typer.Option("--compile-only", help="for GPUs that need not be there")] = False,
    target: Annotated[str, typer.Option(help="sm_80,sm_90,sm_100,gfx942, or all")] = "all",
    kernel: Annotated[str, typer.Option(help="such as decode_attention,prefill_attention, or all")] = "all",
    jobs: Annotated[int | None, typer.Option(help="compilers at once; one for each core", min=1, max=256)] = None,
    cache: Annotated[
        Path | None, typer.Option(help="of what was found before of the same source and options", metavar="DIR")
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="whose tables to rewrite, such as docs/kernels.md", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Registers, spills and shared memory of each Triton kernel variant that can be launched."""
    if not compile_only:
        raise typer.BadParameter("kernels are compiled only, and not timed yet: give --compile-only")
    try:
        import triton
    except ImportError as error:
        raise typer.BadParameter("this needs Triton: pip install 'twinpool[gpu]'") from error
    if triton.knobs.runtime.interpret:
        raise typer.BadParameter("TRITON_INTERPRET is set: nothing can be compiled")
    from twinpool.cluster.bench.kernels import COLUMNS, compile_kernels
    from twinpool.cluster.bench.kernels_table import rewrite_tables
    from twinpool.cluster.bench.report import print_report
    from twinpool.core.errors import Internal
    from twinpool.kernels.ahead_of_time import TARGETS

    rows = compile_kernels(
        list(TARGETS) if target == "all" else _names(target),
        [] if kernel == "all" else _names(kernel),
        jobs or len(os.sched_getaffinity(0)),
        cache,
    )
    if document is not None:
        rewrite_tables(document, rows)
    print_report("bench kernels", rows, COLUMNS, as_json=as_json)
    if wrong := [row for row in rows if row["faults"]]:
        first = wrong[0]
        told = f"{first['kernel']} {first['variant']} on {first['target']}: {first['faults']}"
        raise Internal(f"{len(wrong)} of {len(rows)} variants are not as they must be; {told}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
