"""Fits the linear form to measured engine steps, and says how far off any form is, region by region.

Knows rows of numbers, not how they were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from twinpool.router.estimate import LinearForm, StepForm, fit_relative

Column = NDArray[np.float64]
LONG_PREFILL_TOKENS = 1024
LARGE_BATCH = 16
MAX_ROUNDS = 10


class Region(StrEnum):
    """Where errors are told apart: what a step did, and how much of it."""

    PREFILL_SHORT = "prefill_short"
    PREFILL_LONG = "prefill_long"  # from LONG_PREFILL_TOKENS on
    DECODE_SMALL = "decode_small"
    DECODE_LARGE = "decode_large"  # from LARGE_BATCH on
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """M measured steps; what each column means is said at `StepForm.seconds`."""

    prefill_tokens: Column  # [M]
    prefill_squares: Column  # [M]
    context_tokens: Column  # [M]
    batch: Column  # [M]
    seconds: Column  # [M] over 0

    @property
    def is_prefill(self) -> NDArray[np.bool_]:
        """[M] whether it computed chunks of prompts, mixed steps included."""
        return np.asarray(self.prefill_tokens > 0)

    @property
    def is_decode(self) -> NDArray[np.bool_]:
        """[M] whether it decoded, mixed steps included."""
        return np.asarray(self.batch > 0)

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        """The rows that ``chosen`` [M] says."""
        return type(self)(*(getattr(self, item.name)[chosen] for item in fields(self)))

    def regions(self) -> dict[Region, NDArray[np.bool_]]:
        """Which rows [M] belong where; every row with work belongs to one region."""
        alone, decoding = self.is_prefill & ~self.is_decode, self.is_decode & ~self.is_prefill
        is_long, is_large = self.prefill_tokens >= LONG_PREFILL_TOKENS, self.batch >= LARGE_BATCH
        return {
            Region.PREFILL_SHORT: alone & ~is_long,
            Region.PREFILL_LONG: alone & is_long,
            Region.DECODE_SMALL: decoding & ~is_large,
            Region.DECODE_LARGE: decoding & is_large,
            Region.MIXED: self.is_prefill & self.is_decode,
        }


@dataclass(frozen=True, slots=True)
class FitError:
    """Relative errors of predictions, ``|predicted / measured - 1|``."""

    count: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The form, and how well it fits what it was fitted to; regions without rows are left out."""

    form: LinearForm
    errors: Mapping[Region, FitError]


def fit_linear(rows: StepRows) -> LinearFit:
    """The six coefficients that fit all rows at once, by least squares of the relative error (DistServe's fit).

    A mixed step pays the larger of the two fixed terms, which the fit itself decides: it is repeated until the answer
    stays. A coefficient that no row speaks of is 0.
    """
    prefill_is_larger = True
    for _ in range(MAX_ROUNDS):
        form = LinearForm(*fit_relative(_terms(rows, prefill_is_larger=prefill_is_larger), rows.seconds))
        if prefill_is_larger == (form.prefill_a_s >= form.decode_alpha_s):
            break
        prefill_is_larger = not prefill_is_larger
    return LinearFit(form, errors_by_region(form, rows))


def _terms(rows: StepRows, *, prefill_is_larger: bool) -> Column:
    """[M, 6] in the order of LinearForm's fields."""
    pays_a = rows.is_prefill & (prefill_is_larger | ~rows.is_decode)
    pays_alpha = rows.is_decode & (~rows.is_prefill | (not prefill_is_larger))
    columns = (pays_a, rows.prefill_tokens, rows.prefill_squares, pays_alpha, rows.context_tokens, rows.batch)
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def errors_by_region(form: StepForm, rows: StepRows) -> dict[Region, FitError]:
    """How far off ``form`` is on these rows; regions without rows are left out."""
    predicted = form.seconds(rows.prefill_tokens, rows.prefill_squares, rows.context_tokens, rows.batch)
    errors = np.abs(predicted / rows.seconds - 1)
    return {region: summarise_errors(errors[chosen]) for region, chosen in rows.regions().items() if chosen.any()}


def summarise_errors(errors: Column) -> FitError:
    """Median and 90th percentile of relative errors [K]; K is over 0."""
    return FitError(len(errors), float(np.median(errors)), float(np.percentile(errors, 90)))
