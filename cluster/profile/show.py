"""Prints what `twinpool profile` found. Measures nothing."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from twinpool.cluster.json_text import json_text
from twinpool.router.latency_profile import KindProfile, LinearPart

if TYPE_CHECKING:
    from twinpool.cluster.profile.command import Measured

COEFFICIENTS = ("prefill_a_s", "prefill_b_s", "prefill_c_s", "decode_alpha_s", "decode_beta_s", "decode_gamma_s")


def print_profile(measured: "Measured", out: Path, *, as_json: bool) -> None:
    """One JSON object, or tables: coefficients, errors by region, link and messages, and what was left out."""
    if as_json:
        sys.stdout.write(json_text(measured.as_values()) + "\n")
        return
    profile = measured.profile
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"{profile.model} ({profile.dtype}) on {profile.machine}; {measured.wall_s:.0f} s")
    console.print(_forms(profile.kinds))
    console.print(_errors(profile.kinds))
    if measured.handoffs is not None:
        cost = measured.handoffs.cost
        console.print(
            f"handoff ({measured.handoffs.link}): {cost.latency_s * 1e3:.2f} ms + {cost.bytes_per_s / 1e6:.0f} MB/s"
        )
    console.print(f"message: {profile.message_s * 1e3:.2f} ms one way")
    for name, kind in profile.kinds.items():
        for gap in kind.not_measured:
            console.print(f"not measured: {name}: {gap}")
    console.print(f"written: {out}")


def _forms(kinds: dict[str, KindProfile]) -> Table:
    table = Table(box=None, header_style="bold")
    for header in ("kind", *(name.removesuffix("_s") for name in COEFFICIENTS), "step overhead"):
        table.add_column(header)
    for name, kind in kinds.items():
        assert isinstance(kind.steps, LinearPart)
        values = (getattr(kind.steps, each) for each in COEFFICIENTS)
        table.add_row(name, *(f"{value:.3g}" for value in values), f"{kind.step_overhead_s:.3g}")
    return table


def _errors(kinds: dict[str, KindProfile]) -> Table:
    table = Table(box=None, header_style="bold")
    for header in ("kind", "region", "rows", "median error", "p90 error"):
        table.add_column(header)
    for name, kind in kinds.items():
        for region, error in kind.fit_errors.items():
            table.add_row(name, region, str(error.count), f"{error.median:.1%}", f"{error.p90:.1%}")
    return table
