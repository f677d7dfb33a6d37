"""`twinpool bench serve --compare`: a disaggregated cluster and one of as many mixed workers, turn by turn.

Knows the order of the turns and what is compared; measuring one load is cluster/bench/serve.py's.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from twinpool.cluster.bench.measures import ratio
from twinpool.cluster.bench.pair import read_pair
from twinpool.cluster.bench.report import Column
from twinpool.cluster.bench.serve import LOAD_COLUMNS, LoadOptions, Measured, check_load, measure_load, row_of
from twinpool.cluster.own_cluster import Values, own_cluster
from twinpool.cluster.state import StateFolder

SPLIT, MIXED = "disaggregated", "mixed"
RATES = ("slo_attainment", "goodput_rps", "tokens_per_s")
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
COLUMNS: tuple[Column, ...] = (
    *("mode", *LOAD_COLUMNS),
    *(("ratios.goodput_rps", "x met/s"), ("ratios.ttft_s.p99", "x TTFT p99"), ("ratios.tpot_s.p99", "x TPOT p99")),
)


def compare_modes(spec_path: Path, options: LoadOptions, rounds: int, folder: StateFolder) -> list[Values]:
    """Bring both clusters up, one after the other, `rounds` times, and offer both the same load in each round.

    Returns:
        A row of the mixed cluster, and one of the disaggregated with ratios to it.

    Raises:
        SpecError: the YAML or the load is wrong, or a cluster cannot start. Nothing is left running.
    """
    split, mixed = read_pair(spec_path)
    check_load(options)
    specs = {SPLIT: split, MIXED: mixed}
    parts: dict[str, list[Measured]] = {SPLIT: [], MIXED: []}
    for turn in range(rounds):
        for mode in (SPLIT, MIXED) if turn % 2 == 0 else (MIXED, SPLIT):  # so that a drift of the machine hits both
            with own_cluster(specs[mode], f"bench-{os.getpid()}-{mode}", folder) as state:
                parts[mode].append(asyncio.run(measure_load(state.grpc, options, turn)))
    rows = {mode: {"mode": mode} | row_of(options, measured) for mode, measured in parts.items()}
    return [rows[MIXED], rows[SPLIT] | {"ratios": ratios(rows[SPLIT], rows[MIXED])}]


def ratios(row: Values, base: Values) -> Values:
    """Each number of a row over that of another: over 1 is better for rates, worse for latencies."""
    rates: Values = {name: ratio(row[name], base[name]) for name in RATES}
    return rates | {name: _each(row[name], base[name], list(row[name])) for name in LATENCIES}


def _each(values: Values, base: Values, names: Sequence[str]) -> Values:
    return {name: ratio(values[name], base[name]) for name in names}
