"""How far each latency form is off published measurements, region by region.

Knows the two files it compares with (splitwise-sim's performance table, DistServe's fits); scripts/latency_error.py
prints what comes out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinpool.cluster.profile_file import ProfileGroup, read_profile_groups
from twinpool.core.errors import SpecError
from twinpool.router.hardware import GPUS
from twinpool.router.latency_fit import Region, StepRows, errors_by_region, fit_linear, summarise_errors
from twinpool.router.latency_table import (
    ProfilePoint,
    median_points,
    original_rule_form,
    step_rows,
    table_form,
    without_split_batches,
)
from twinpool.router.roofline import (
    DISTSERVE_A100,
    SPLITWISE_A100,
    SPLITWISE_H100,
    Efficiency,
    ModelSize,
    roofline_form,
)
from twinpool.router.roofline_fit import MeasuredWorker, fit_efficiency

SIZES = {  # the models' config.json on the Hugging Face hub
    "llama2-70b": ModelSize(80, 8192, 64, 8, 128, 28_672, 32_000),
    "bloom-176b": ModelSize(70, 14_336, 112, 112, 128, 57_344, 250_880, mlp_matrices=2),
    "facebook/opt-13b": ModelSize(40, 5120, 40, 40, 128, 20_480, 50_272, mlp_matrices=2),
}
HARDWARE = {"a100-80gb": (GPUS["A100-80GB"], SPLITWISE_A100), "h100-80gb": (GPUS["H100-SXM"], SPLITWISE_H100)}
CALIBRATED_TOKENS = 2048  # the rooflines were fitted to prefills up to here
DISTSERVE_MAX_CONTEXT = 66_144  # KV tokens that OPT-13B has room for on one GPU


class ErrorRow(NamedTuple):
    """One line of the report."""

    group: str
    form: str
    region: str
    points: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class DistServeFit:
    """One model and degree of DistServe's published fits: milliseconds of ``a + b * tokens + c * ...``."""

    prefill: tuple[float, float, float]
    small: tuple[float, float, float]
    large: tuple[float, float, float]
    large_batch: int  # the last that counts as small


def table_errors(path: Path) -> Iterator[ErrorRow]:
    """Errors of all forms on a performance table; hardware without a sheet here is left out.

    Raises:
        SpecError: the file is bad.
    """
    for group, points in read_profile_groups(path).items():
        if group.hardware in HARDWARE:
            yield from _group_errors(group, points)


def _group_errors(group: ProfileGroup, points: Sequence[ProfilePoint]) -> Iterator[ErrorRow]:
    kept = without_split_batches(median_points(points))
    rows, name = step_rows(kept), f"{group.model} {group.hardware} tp{group.tensor_parallel}"
    yield from _rows_of(name, "linear, fitted to these", errors_by_region(fit_linear(rows).form, rows))
    yield from _rows_of(name, "table, each point left out in turn", _left_out(kept))
    yield from _rows_of(name, "the original simulator's rule", errors_by_region(original_rule_form(points), rows))
    if group.model in SIZES:
        gpu, efficiency = HARDWARE[group.hardware]
        form = roofline_form(SIZES[group.model], gpu, group.tensor_parallel, 1, efficiency)
        yield from _rows_of(name, "roofline", errors_by_region(form, rows))


def calibrated_table(path: Path, hardware: str) -> Efficiency:
    """The efficiency that fits a performance table's rows of one GPU best, prefills up to 2,048 tokens.

    Raises:
        SpecError: the file is bad.
    """
    workers = []
    for group, points in read_profile_groups(path).items():
        if group.hardware == hardware and group.model in SIZES:
            rows = step_rows(without_split_batches(median_points(points)))
            chosen = rows.where(rows.prefill_tokens <= CALIBRATED_TOKENS)
            workers.append(MeasuredWorker(SIZES[group.model], HARDWARE[hardware][0], group.tensor_parallel, chosen))
    return fit_efficiency(workers)


def calibrated_distserve(path: Path, model: str = "facebook/opt-13b") -> Efficiency:
    """The efficiency that fits DistServe's fits of one model best; raises as `distserve_errors`."""
    gpu = GPUS["A100-80GB"]
    fits = _read_fits(path, model)
    return fit_efficiency([MeasuredWorker(SIZES[model], gpu, tp, distserve_rows(fit)) for tp, fit in fits.items()])


def _left_out(points: Sequence[ProfilePoint]) -> dict[Region, Any]:
    """Errors of tables on points that they were not made from."""
    errors: dict[Region, list[float]] = {}
    for index, point in enumerate(points):
        try:
            form = table_form([*points[:index], *points[index + 1 :]])
        except ValueError:
            continue
        for region, error in errors_by_region(form, step_rows([point])).items():
            errors.setdefault(region, []).append(error.median)
    return {region: summarise_errors(np.array(errors[region])) for region in Region if region in errors}


def distserve_errors(path: Path, model: str = "facebook/opt-13b") -> Iterator[ErrorRow]:
    """Errors of the roofline on DistServe's fits of one model, taken at a grid of lengths and batches.

    Raises:
        SpecError: the file is bad, or has nothing about the model.
    """
    for degree, fit in _read_fits(path, model).items():
        rows = distserve_rows(fit)
        form = roofline_form(SIZES[model], GPUS["A100-80GB"], degree, 1, DISTSERVE_A100)
        yield from _rows_of(f"{model} A100-80GB tp{degree}", "roofline", errors_by_region(form, rows))


def _read_fits(path: Path, model: str) -> dict[int, DistServeFit]:
    """By tensor parallel degree, the smallest first."""
    try:
        degrees = json.loads(path.read_text(encoding="utf-8"))[model]
        return {int(degree): _read_fit(values) for degree, values in sorted(degrees.items())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path}: is not a file of DistServe's fits about {model}: {error}") from error


def _read_fit(values: Mapping[str, Any]) -> DistServeFit:
    prefill, small, large = (_read_curve(values[key]) for key in ("prefill", "decoding_smallbs", "decoding_largebs"))
    return DistServeFit(prefill, small, large, int(values["decoding_large_small_bs_threshold"]))


def _read_curve(values: Sequence[Any]) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)


def distserve_rows(fit: DistServeFit) -> StepRows:
    """The fit's own values for prompts of 64 to 2,048 tokens, up to four and 4,096 tokens at once, and for batches of 1
    to 128 sequences of 128 to 1,024 tokens."""
    rows = list[tuple[float, ...]]()
    for length in (64, 128, 256, 512, 1024, 2048):
        for batch in (1, 2, 4):
            tokens, squares = length * batch, length * length * batch
            if tokens <= 4096:
                rows.append((tokens, squares, 0, 0, _ms(fit.prefill, tokens, squares)))
    for batch in (1, 4, 16, 64, 95, 128):
        curve = fit.small if batch <= fit.large_batch else fit.large
        for context in (128 * batch, 512 * batch, 1024 * batch):
            if context <= DISTSERVE_MAX_CONTEXT:
                rows.append((0, 0, context, batch, _ms(curve, context, batch)))
    return StepRows(*np.array(rows, np.float64).T)


def _ms(curve: tuple[float, float, float], first: float, second: float) -> float:
    """Seconds of a fit in milliseconds."""
    return (curve[0] + curve[1] * first + curve[2] * second) / 1e3


def _rows_of(group: str, form: str, errors: Mapping[Region, Any]) -> Iterator[ErrorRow]:
    for region, error in errors.items():
        yield ErrorRow(group, form, str(region), error.count, error.median, error.p90)
