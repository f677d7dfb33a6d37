"""Matrix products of a model's layers on a CPU; knows nothing of layers, sequences or batches.

Shape letters: T rows, C inputs, O outputs.
"""

import logging
from enum import StrEnum, unique
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from twinpool.kernels.int8_product import MAX_ROWS, Int8Product, has_int8_product

log = logging.getLogger(__name__)

TILE_ROWS = 32
# The next three were measured: docs/performance.md.
FEW_ROWS = 4  # oneDNN computes 1 to 3 rows slower than 4 ...
PADDED_NUMEL = 2**20  # ... by more than padding costs from this size of the weight on
PACKED_NUMEL = {torch.float32: 2**18}  # smaller weights are faster as they are; in other dtypes none is


@unique
class Arithmetic(StrEnum):
    """How matrix products are done."""

    FAST = "fast"  # weights packed for the CPU's widest instructions
    PLAIN = "plain"  # torch's own product, with the weight as the checkpoint has it
    DETERMINISTIC = "deterministic"  # a row's bits do not depend on the other rows, on their number or on its place
    INT8 = "int8"  # FAST, and a copy of one byte per weight for products of few rows


class UnstableOrderError(RuntimeError):
    """The products of this CPU and this torch cannot be made deterministic."""


class Linear(Protocol):
    """A weight (and perhaps a bias) that rows are multiplied by."""

    num_bytes: int  # memory kept

    def __call__(self, x_TC: Tensor) -> Tensor:
        """Return x_TC @ weight.T + bias as (T, O), in the weight's dtype; T may be 0."""
        ...


def make_linear(weight_OC: Tensor, bias_O: Tensor | None, arithmetic: Arithmetic) -> Linear:
    """Return the product with ``weight_OC`` done as ``arithmetic`` says.

    The weight may be copied into another form: the caller drops its own reference, so that it is not kept twice.
    DETERMINISTIC holds for the thread count that torch has now.

    Raises:
        UnstableOrderError: DETERMINISTIC was asked for and cannot be had.
    """
    match arithmetic:
        case Arithmetic.PLAIN:
            return PlainLinear(weight_OC, bias_O)
        case Arithmetic.FAST:
            return _make_fast(weight_OC, bias_O)
        case Arithmetic.DETERMINISTIC:
            return DeterministicLinear(_make_packed(weight_OC, bias_O), weight_OC)
        case Arithmetic.INT8:
            return Int8Linear(weight_OC, bias_O) if has_int8_product() else _make_fast(weight_OC, bias_O)


class PlainLinear:
    """torch's own product."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OC = weight_OC
        self._bias_O = bias_O
        self.num_bytes = weight_OC.nbytes + _nbytes(bias_O)

    def __call__(self, x_TC: Tensor) -> Tensor:
        """See Linear."""
        return functional.linear(x_TC, self._weight_OC, self._bias_O)


class PackedLinear:
    """oneDNN's product with the weight reordered for it once; `has_packed_product` says whether torch has it."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OC.contiguous())
        self._bias_O = bias_O
        self._least_rows = FEW_ROWS if weight_OC.numel() >= PADDED_NUMEL else 1
        self.num_bytes = weight_OC.nbytes + _nbytes(bias_O)

    def __call__(self, x_TC: Tensor) -> Tensor:
        """See Linear."""
        num_rows = x_TC.shape[0]
        if num_rows >= self._least_rows:
            return _packed_product(x_TC, self._packed, self._bias_O)
        padded = functional.pad(x_TC, (0, 0, 0, self._least_rows - num_rows))
        return _packed_product(padded, self._packed, self._bias_O)[:num_rows]


class Int8Linear:
    """Products of up to MAX_ROWS rows with a weight of one byte, those of more with the weight as it is."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor | None) -> None:
        self._few = Int8Product(weight_OC, bias_O)
        self._many = _make_fast(weight_OC, bias_O)
        self.num_bytes = self._few.num_bytes + self._many.num_bytes

    def __call__(self, x_TC: Tensor) -> Tensor:
        """See Linear."""
        return self._few(x_TC) if 0 < x_TC.shape[0] <= MAX_ROWS else self._many(x_TC)


class DeterministicLinear:
    """Products of tiles of TILE_ROWS rows, the last one padded; a library keeps one order of summing per shape.

    A rest of FEW_ROWS or less is computed as a tile of that size, which is much faster, where the bits are the same.
    """

    def __init__(self, product: Linear, weight_OC: Tensor) -> None:
        self._product = product
        self._outputs = weight_OC.shape[0]
        self._small = has_one_order(product, weight_OC.shape[1], self._outputs, weight_OC.dtype)
        self.num_bytes = product.num_bytes

    def __call__(self, x_TC: Tensor) -> Tensor:
        """See Linear."""
        num_rows = x_TC.shape[0]
        if num_rows == TILE_ROWS:
            return self._product(x_TC.contiguous())
        out_TO = x_TC.new_empty((num_rows, self._outputs))
        for start in range(0, num_rows, TILE_ROWS):
            rows = min(TILE_ROWS, num_rows - start)
            tile_rows = FEW_ROWS if rows <= FEW_ROWS and self._small else TILE_ROWS
            tile = x_TC.new_zeros((tile_rows, x_TC.shape[1]))  # memory of its own: alignment can change the order
            tile[:rows] = x_TC[start : start + rows]
            out_TO[start : start + rows] = self._product(tile)[:rows]
        return out_TO


_orders: dict[tuple[int, int, torch.dtype, int], bool] = {}


def has_one_order(product: Linear, inputs: int, outputs: int, dtype: torch.dtype) -> bool:
    """Whether small tiles give the bits of large ones; tried once per shape, dtype and thread count.

    Raises:
        UnstableOrderError: in a large tile already, a row's bits depend on its place or on the rows around it.
    """
    key = (inputs, outputs, dtype, torch.get_num_threads())
    if key not in _orders:
        generator = torch.Generator().manual_seed(inputs)
        rows = torch.randn(TILE_ROWS, inputs, generator=generator).to(dtype)
        expected = product(rows)
        for shift in (1, FEW_ROWS + 1):
            if not torch.equal(product(rows.roll(shift, 0)), expected.roll(shift, 0)):
                raise UnstableOrderError(
                    f"this CPU's products of {inputs} x {outputs} in {dtype} depend on a row's place"
                )
        small = [product(part.clone()) for part in torch.split(rows, FEW_ROWS)]
        small += [product(part.clone()) for part in torch.split(rows.roll(1, 0), FEW_ROWS)]
        _orders[key] = torch.equal(torch.cat(small), torch.cat((expected, expected.roll(1, 0))))
    return _orders[key]


def _make_fast(weight_OC: Tensor, bias_O: Tensor | None) -> Linear:
    if weight_OC.numel() < PACKED_NUMEL.get(weight_OC.dtype, 0):
        return PlainLinear(weight_OC, bias_O)
    return _make_packed(weight_OC, bias_O)


def _make_packed(weight_OC: Tensor, bias_O: Tensor | None) -> Linear:
    return PackedLinear(weight_OC, bias_O) if has_packed_product(weight_OC.dtype) else PlainLinear(weight_OC, bias_O)


@cache
def has_packed_product(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have oneDNN's packed product, which torch keeps private; tried once."""
    weight_OC, x_TC = torch.eye(24, 40, dtype=dtype) * 3, torch.arange(200.0).view(5, 40).to(dtype)
    try:
        right = torch.equal(PackedLinear(weight_OC, None)(x_TC), functional.linear(x_TC, weight_OC))
    except (AttributeError, RuntimeError) as error:
        log.warning("no packed matrix products in %s, plain ones instead: %s", dtype, str(error).partition("\n")[0])
        return False
    if not right:
        log.warning("packed matrix products in %s are wrong here, plain ones instead", dtype)
    return right


def _packed_product(x_TC: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    out_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TC, packed, bias_O, "none", [], "")
    return out_TO


def _nbytes(bias_O: Tensor | None) -> int:
    return 0 if bias_O is None else bias_O.nbytes
