"""Reads what is to befall simulated workers, as a command line says it: `crash decode-1 at 30`.

Knows words; simulator/scenario.py has what they mean.
"""

from collections.abc import Collection, Sequence

from twinpool.core.errors import SpecError
from twinpool.core.limits import Real, shown
from twinpool.simulator.scenario import Fault, FaultKind

FORM = "KIND WORKER at SECONDS [for SECONDS] [by FACTOR]"
_LIMIT = 1e9
_MORE = {FaultKind.SLOW: ("for", "by"), FaultKind.DRAIN: ("for",), FaultKind.CRASH: ()}


def parse_faults(texts: Sequence[str], worker_ids: Collection[str]) -> tuple[Fault, ...]:
    """Faults in the order given.

    Raises:
        SpecError: texts are no faults, or name workers that are not there; a line for each.
    """
    faults, wrong = [], []
    for text in texts:
        try:
            faults.append(_parse(text, worker_ids))
        except SpecError as error:
            wrong.append(str(error))
    if wrong:
        raise SpecError("\n".join(wrong))
    return tuple(faults)


def _parse(text: str, worker_ids: Collection[str]) -> Fault:
    words = text.split()
    if len(words) < 4 or len(words) % 2 or words[2] != "at":
        raise SpecError(f"--fault: {shown(text)} must read: {FORM}")
    if words[0] not in list(FaultKind):
        raise SpecError(f"--fault: {shown(words[0])} is not one of: {', '.join(FaultKind)}")
    kind, worker_id = FaultKind(words[0]), words[1]
    if worker_id not in worker_ids:
        raise SpecError(f"--fault: there is no worker {shown(worker_id)}; there are: {_some(worker_ids)}")
    numbers = {"at": _number(text, words[3])}
    for name, value in zip(words[4::2], words[5::2], strict=True):
        if name not in _MORE[kind] or name in numbers:
            allowed = ", ".join(_MORE[kind]) or "nothing"
            raise SpecError(f"--fault: {shown(text)}: after `at SECONDS`, {kind} takes {allowed}, each once")
        numbers[name] = _number(text, value, is_open=True)
    return Fault(kind, worker_id, numbers["at"], numbers.get("for", float("inf")), numbers.get("by", 2.0))


def _number(text: str, word: str, *, is_open: bool = False) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if why := Real(0, _LIMIT, is_open).refusal(value):
        raise SpecError(f"--fault: {shown(text)}: {shown(word)} {why.partition(', not')[0]}")
    return value


def _some(worker_ids: Collection[str]) -> str:
    names = sorted(worker_ids)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
