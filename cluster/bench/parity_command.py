"""What a user writes after `twinpool bench parity`, made into what is measured; and what cannot be, told.

Knows the words of the command line; measures nothing.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import twinpool
from twinpool.cluster.bench.parity import COLUMNS, ParityOptions, bench_parity
from twinpool.cluster.bench.parity_subjects import engine, modelled
from twinpool.cluster.bench.report import print_report
from twinpool.cluster.state import StateFolder
from twinpool.core.errors import SpecError
from twinpool.model.modelled_shape import modelled_shape
from twinpool.router.route import Policy

Parsed = TypeVar("Parsed")
DEMO = Path("examples/models/tiny")
MAX_WORKERS = 64


def run_parity(
    *,
    parts: Sequence[str],
    shape: str,
    model: Path | None,
    pools: str,
    policies: str,
    loads: str,
    runs: int,
    duration_s: float,
    seed: int,
    folder: StateFolder,
    as_json: bool,
) -> None:
    """Measure and print.

    Raises:
        SpecError: one of them makes no sense. Nothing was started.
    """
    options = ParityOptions(
        pools=_each(pools, "--pools", "such as 1+1,2+2", _pools),
        policies=_each(policies, "--policies", f"of {', '.join(Policy)}", lambda text: str(Policy(text))),
        loads=_each(loads, "--loads", "shares of the knee over 0 and up to 2, such as 0.5,0.8", _load),
        runs=runs,
        duration_s=duration_s,
        seed=seed,
    )
    subjects = []
    if "modelled" in parts:
        modelled_shape(shape)
        subjects.append(modelled(shape))
    if "engine" in parts:
        subjects.append(engine(_demo() if model is None else model.absolute()))
    rows = [row for subject in subjects for row in bench_parity(subject, options, folder, _tell)]
    print_report("bench parity", rows, COLUMNS, as_json=as_json)


def _demo() -> Path:
    path = Path(twinpool.__file__).resolve().parents[2] / DEMO
    if not path.is_dir():
        raise SpecError(f"--model: {path} is not here: say where a model is, or --part modelled")
    return path


def _each(text: str, option: str, what: str, parse: Callable[[str], Parsed]) -> tuple[Parsed, ...]:
    try:
        return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))
    except ValueError:
        raise SpecError(f"{option}: {text[:60]!r} is not a list {what}") from None


def _pools(text: str) -> tuple[int, int]:
    prefill, _, decode = text.partition("+")
    if not (prefill.isascii() and prefill.isdigit() and decode.isascii() and decode.isdigit()):
        raise ValueError(text)
    found = int(prefill[:4]), int(decode[:4])
    if not all(1 <= workers <= MAX_WORKERS for workers in found):
        raise ValueError(text)
    return found


def _load(text: str) -> float:
    value = float(text)
    if not 0 < value <= 2:
        raise ValueError(text)
    return value


def _tell(sentence: str) -> None:
    sys.stderr.write(f"twinpool: {sentence}\n")
