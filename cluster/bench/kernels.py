"""`twinpool bench kernels --compile-only`: compiles every kernel variant for GPUs that are not there.

Knows the order of the work and what is told of it; what a variant must be like is kernels/code_rules.py's.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache as remember
from pathlib import Path
from typing import Any

from twinpool.core.errors import InvalidRequest
from twinpool.kernels.ahead_of_time import TARGETS, MachineCode, Variant, compile_variant, recall
from twinpool.kernels.code_rules import faults, programs_per_multiprocessor
from twinpool.kernels.variants import list_variants

Values = dict[str, Any]
Key = tuple[str, str, str]  # target, kernel, variant
COLUMNS = ("kernel", "variant", "target", "registers", "spill_bytes", "shared_bytes", "programs_per_sm", "faults")


def compile_kernels(targets: Sequence[str], kernels: Sequence[str], jobs: int, cache: Path | None) -> list[Values]:
    """Compile all variants of some kernels (none named: of all) for some targets, in so many processes.

    Returns:
        A row for each variant and target, in the order of targets and of ``list_variants``; ``faults`` of a variant
        that does not compile is the compiler's complaint, and its numbers are None.

    Raises:
        InvalidRequest: a target or kernel has another name. Nothing was compiled.
    """
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise InvalidRequest("target", f"no target is called {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    known = list(dict.fromkeys(kernel for target in targets for _, kernel, _ in _variants(target)))
    if unknown := sorted(set(kernels) - set(known)):
        raise InvalidRequest("kernel", f"no kernel is called {', '.join(unknown)}; there are {', '.join(known)}")
    keys = [key for target in targets for key in _variants(target) if not kernels or key[1] in kernels]
    return [_row(key, told) for key, told in zip(keys, _compile_all(keys, jobs, cache), strict=True)]


@remember
def _variants(target: str) -> dict[Key, Variant]:
    return {(target, variant.kernel_name, variant.name): variant for variant in list_variants(target)}


def _compile_all(keys: Sequence[Key], jobs: int, cache: Path | None) -> list[MachineCode | str]:
    told: dict[Key, MachineCode | str] = {}
    for key in keys:
        if (code := recall(_variants(key[0])[key], key[0], cache)) is not None:
            told[key] = code
    missing = [key for key in keys if key not in told]
    if missing:
        pool = ProcessPoolExecutor(min(jobs, len(missing)), mp_context=multiprocessing.get_context("spawn"))
        try:
            told |= zip(missing, pool.map(_compile_one, missing, [cache] * len(missing)), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # so that an interrupted run ends with what it is at
    return [told[key] for key in keys]


def _compile_one(key: Key, cache: Path | None) -> MachineCode | str:
    try:
        return compile_variant(_variants(key[0])[key], key[0], cache)
    except Exception as error:  # noqa: BLE001 - the compiler's has any class, and is told of this variant
        return f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _row(key: Key, told: MachineCode | str) -> Values:
    if isinstance(told, str):
        nothing = dict.fromkeys(("num_warps", "registers", "spill_bytes", "shared_bytes", "programs_per_sm"))
        return {"kernel": key[1], "variant": key[2], "target": key[0], **nothing, "faults": told}
    found = "; ".join(faults(_variants(key[0])[key], told))
    return {**asdict(told), "programs_per_sm": programs_per_multiprocessor(told), "faults": found or None}
