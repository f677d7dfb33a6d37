"""Draws a simulated run: latencies' distributions, utilisation over time, attainment against rate. As PNG and SVG.

Knows matplotlib, which is optional, and what a report holds; nothing of how a run was made.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpool.core.errors import SpecError
from twinpool.simulator.rate_search import RateSearch
from twinpool.simulator.sketch import Sketch
from twinpool.simulator.step_columns import ACTIVITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("latencies", "utilisation", "attainment")
SUFFIXES = (".png", ".svg")
COLOURS = ("#4477aa", "#ee6677", "#ccbb44", "#228833")  # Paul Tol's bright scheme: told apart by the colour-blind, too


def plot_paths(folder: Path) -> list[Path]:
    """Every file that may be drawn there."""
    return [folder / (name + suffix) for name in NAMES for suffix in SUFFIXES]


def check_library(library: str = "matplotlib") -> None:
    """Raise SpecError unless plots can be drawn."""
    if find_spec(library) is None:
        raise SpecError(f"--plot: needs {library}: pip install 'twinpool[plot]'")


def make_folder(folder: Path) -> None:
    """Make it, and those that it is in. Raises SpecError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--plot: {folder} cannot be made: {error.strerror}") from None


def plot_latencies(folder: Path, sketches: Mapping[str, Sketch], goals: Mapping[str, float]) -> list[Path]:
    """The cumulative distribution of each latency that has any values, with its goal; returns the files written."""
    there = {name: sketch for name, sketch in sketches.items() if sketch.count}
    figure = _figure(4.0 * max(1, len(there)), 3.2)
    for index, (name, sketch) in enumerate(there.items()):
        axes = figure.add_subplot(1, len(there), index + 1)
        values, shares = sketch.cumulative()
        axes.step(values, shares, where="post", color=COLOURS[0])
        if name in goals:
            axes.axvline(goals[name], color=COLOURS[1], linestyle="--", label=f"goal {goals[name]:g} s")
            axes.legend(loc="lower right")
        axes.set(xlabel=f"{name.removesuffix('_s').upper()} (s)", ylabel="share of requests" if not index else "")
        axes.set_ylim(0, 1.02)
        if values[0] > 0 and values[-1] / values[0] > 30:
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
    return _save(figure, folder / "latencies")


def plot_utilisation(folder: Path, over_time: Mapping[str, Any]) -> list[Path]:
    """What each pool's workers did over time, stacked, and the share of their KV blocks in use."""
    pools = over_time["pools"]
    figure = _figure(8.0, 2.6 * max(1, len(pools)))
    for index, (role, shares) in enumerate(pools.items()):
        axes = figure.add_subplot(len(pools), 1, index + 1)
        at_s = [over_time["start_s"] + (i + 0.5) * over_time["bucket_s"] for i in range(len(shares["kv_used"]))]
        axes.stackplot(at_s, *(shares[name] for name in ACTIVITIES), labels=ACTIVITIES, colors=COLOURS, alpha=0.8)
        axes.plot(at_s, shares["kv_used"], color="black", linewidth=1.0, label="KV in use")
        axes.set_title(f"{role} workers", loc="left", fontsize="medium")
        axes.set(ylabel="share", xlabel="s" if index + 1 == len(pools) else "")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize="small", ncols=4, frameon=False)
        axes.grid(alpha=0.3)
    return _save(figure, folder / "utilisation")


def plot_attainment(folder: Path, found: RateSearch, attainment: float) -> list[Path]:
    """Attainment against rate: mean, worst and best of the seeds, and the largest rate that keeps it."""
    figure = _figure(6.0, 3.6)
    axes = figure.add_subplot()
    points = found.points
    rates = [point.rate_rps for point in points]
    axes.plot(rates, [point.attainment for point in points], marker="o", color=COLOURS[0], label="mean of seeds")
    axes.fill_between(
        rates, [point.least for point in points], [point.most for point in points], color=COLOURS[0], alpha=0.25
    )
    axes.axhline(attainment, color=COLOURS[1], linestyle="--", label=f"{attainment:.0%} wanted")
    if found.rate_rps is not None:
        axes.axvline(found.rate_rps, color=COLOURS[3], linestyle=":", label=f"{found.rate_rps:.4g} requests/s")
    axes.set(xlabel="offered requests/s", ylabel="share that met its goals")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return _save(figure, folder / "attainment")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", stem: Path) -> list[Path]:
    from matplotlib import rc_context

    paths = [stem.with_suffix(suffix) for suffix in SUFFIXES]
    with rc_context({"svg.hashsalt": "twinpool"}):
        for path in paths:
            _save_one(figure, path)
    return paths


def _save_one(figure: "Figure", path: Path) -> None:
    """Replace the file at once, or leave it as it was."""
    half = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(half, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        half.replace(path)
    except OSError as error:
        raise SpecError(f"--plot: {path} cannot be written: {error.strerror}") from None
    finally:
        half.unlink(missing_ok=True)
